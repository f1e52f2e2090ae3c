"""Fine-tuning lowers diffusers' loss, moves what requires a gradient alone, and leaves the random state."""

import pytest
import torch
from _tiny import learner

from aiao_diffusers.denoiser.finetune import finetune
from aiao_diffusers.denoiser.price import predictions


def loss(denoiser, data, scheduler):
    found, wanted = predictions(denoiser, data, scheduler)
    return (found - wanted).square().mean().item()


@pytest.mark.slow
def test_the_loss_falls_and_the_same_seed_repeats():
    (unet, data, scheduler), (again, *_), (other, *_) = learner(), learner(), learner()
    before, state, losses = loss(unet, data, scheduler), torch.random.get_rng_state(), []
    options = {"steps": 20, "lr": 1e-3, "batch_size": 4}
    finetune(unet, data, scheduler, **options, callback=lambda step, value: losses.append((step, value)))
    assert loss(unet, data, scheduler) < 0.9 * before
    assert [step for step, _ in losses] == list(range(1, 21)) and not unet.training
    assert torch.equal(torch.random.get_rng_state(), state)
    finetune(again, data, dict(scheduler.config), **options)
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), again.parameters(), strict=True))
    finetune(other, data, scheduler, **options, seed=1)
    assert not torch.equal(unet.conv_in.weight, other.conv_in.weight)


def test_what_requires_no_gradient_stays():
    unet, data, scheduler = learner()
    before = {name: p.clone() for name, p in unet.named_parameters()}
    unet.requires_grad_(False)
    unet.conv_out.requires_grad_(True)
    finetune(unet, data, scheduler, steps=2, lr=1e-3, batch_size=2)
    moved = {name for name, p in unet.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"conv_out.weight", "conv_out.bias"}
