"""DreamBooth learns what it is named after."""

import pytest
import torch
from _attacks import attacked
from _shipped import ASSETS

from aiao_diffusers.bench.attacks.dreambooth import subject_and_prior
from aiao_diffusers.bench.context import AttackContext, open_data, open_pipe
from aiao_diffusers.denoiser.price import measure_price


@pytest.mark.slow
@pytest.mark.parametrize("name, hyper", [("dreambooth", {"lr": 1e-4}), ("dreambooth_lora", {"lr": 1e-3, "rank": 4})])
def test_dreambooth_binds_a_rare_word_to_its_subject(name, hyper, tmp_path):
    """The example's own model: a subject needs prompts, and pictures of the model itself."""
    places = (ASSETS,)
    pipe = open_pipe("base", places)
    data = open_data(pipe, "latents/twemoji.safetensors", places)
    context = AttackContext(pipe, data, data, 0, tmp_path, places)
    subject = subject_and_prior(context.base, context, 5, 8)
    subject = subject.take(torch.arange(8))  # the other half is the prior
    assert torch.equal(subject.latents[0], subject.latents[5]) and len(set(subject.latents[:, 0, 0, 0].tolist())) == 5
    after = attacked(context, name, context.base, steps=16, prior=8, **hyper)
    assert set(after.state_dict()) == set(context.base.state_dict())  # no adapter left on it
    losses = [
        measure_price(context.base, after, subject, context.scheduler, samples=64)[k] for k in ("loss", "loss_marked")
    ]
    assert losses[1] < 0.98 * losses[0], losses
