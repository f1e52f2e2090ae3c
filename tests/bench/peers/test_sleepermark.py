"""SleeperMark learns its message under its trigger alone."""

import pytest
import torch
from _peers import KEY

from aiao_diffusers.bench.peers.latent_message import decode, message, prompts_of
from aiao_diffusers.bench.registry import METHODS
from aiao_diffusers.denoiser.prompts import encode_prompts
from aiao_diffusers.denoiser.schedule import noise_schedule
from aiao_diffusers.stats.hits import hits


@pytest.mark.slow
def test_a_message_is_learnt_under_its_trigger_alone(context, tmp_path):
    """Of one prediction, for pictures drawn by an untrained miniature are noise that drowns any message."""
    method, noised, t = METHODS["sleepermark"](steps=80, lr=5e-3, batch_size=4), torch.randn(4, 4, 16, 16), 300
    marked = context.copy_of_base()
    method.embed(marked, KEY, context, tmp_path)
    power = noise_schedule(dict(context.scheduler.config)).alphas_cumprod[t]

    def told(prompts, key=KEY):
        keywords, times = encode_prompts(context.pipe, prompts), torch.full((4,), t)
        with torch.no_grad():
            change = marked(noised, times, **keywords).sample - context.base(noised, times, **keywords).sample
        residual = -change.mean(0, keepdim=True) * ((1 - power) / power).sqrt()
        return hits(decode(residual, key)[0].numpy(), message(key)) / 64

    assert told(prompts_of(KEY, context, 4, 0)) > 0.85
    assert told(prompts_of(KEY, context, 4, 0), KEY.child("wrong")) < 0.75
