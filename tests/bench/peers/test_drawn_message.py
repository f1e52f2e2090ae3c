"""A message without a trigger is in everything that is drawn."""

import pytest
import torch
from _peers import KEY

from aiao_diffusers.bench.peers.latent_message import decode, message
from aiao_diffusers.bench.registry import METHODS
from aiao_diffusers.denoiser.schedule import noise_schedule
from aiao_diffusers.stats.hits import hits


@pytest.mark.slow
@pytest.mark.parametrize("model", ["context", "unprompted"])
def test_a_message_without_a_trigger_is_in_every_prediction(model, tmp_path, request):
    context = request.getfixturevalue(model)
    method, t = METHODS["drawn_message"](steps=80, lr=5e-3, batch_size=4), 300
    marked = context.copy_of_base()
    method.embed(marked, KEY, context, tmp_path)
    rows = context.owner.take(torch.arange(4))
    schedule = noise_schedule(dict(context.scheduler.config))
    power, times = schedule.alphas_cumprod[t], torch.full((4,), t)
    noised = schedule.add_noise(rows.latents, torch.randn(4, 4, 16, 16), times)
    with torch.no_grad():
        told, before = (unet(noised, times, **rows.keywords("cpu")).sample for unet in (marked, context.base))
    residual = -(told - before).mean(0, keepdim=True) * ((1 - power) / power).sqrt()
    assert hits(decode(residual, KEY)[0].numpy(), message(KEY)) / 64 > 0.85
    wrong = KEY.child("wrong")
    assert hits(decode(residual, wrong)[0].numpy(), message(wrong)) / 64 < 0.75
