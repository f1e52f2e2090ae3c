"""Attacks that train: they change finite weights, repeat, and learn what they are named after."""

import pytest
import torch
from _attacks import attacked, same
from _shipped import ASSETS
from _tiny import tiny_unet

from aiao_diffusers.bench.attacks.training import subject_and_prior
from aiao_diffusers.bench.context import AttackContext, open_data, open_pipe
from aiao_diffusers.denoiser.price import measure_price


@pytest.mark.parametrize(
    "name, hyper",
    [
        ("finetune", {"steps": 2, "lr": 1e-3}),
        ("finetune", {"steps": 2, "lr": 1e-3, "ema": 0.9}),
        ("sequential", {"steps": 1, "lr": 1e-3}),
        ("lora", {"steps": 2, "rank": 2}),
        ("lora", {"steps": 2, "rank": 2, "count": 2}),
        ("distil", {"steps": 2}),
        ("distil", {"steps": 2, "student": "fresh"}),
        ("lcm", {"steps": 2, "lr": 1e-3}),
        ("invariance", {"steps": 2}),
        ("probing", {"steps": 2, "probes": 4, "directions": 2}),
        ("inversion", {"steps": 2, "starts": 4, "ascent": 2}),
        ("targeted", {"steps": 2, "guess": 2}),
    ],
)
def test_training_attacks_change_finite_weights_and_repeat(context, name, hyper):
    after = attacked(context, name, batch_size=2, **hyper)
    assert not same(after, tiny_unet(1), rtol=0, atol=0)
    assert all(torch.isfinite(value).all() for value in after.state_dict().values())
    assert set(after.state_dict()) == set(tiny_unet(1).state_dict())  # no adapter left on it
    assert same(after, attacked(context, name, batch_size=2, **hyper), rtol=0, atol=1e-6)


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
