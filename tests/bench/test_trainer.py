"""The one training loop of baselines and adaptive attackers."""

import pytest
import torch
from torch import nn

from aiao_diffusers.bench.trainer import train
from aiao_diffusers.errors import TrainingError


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 4)


def noisy_loss(denoiser: nn.Module):
    return lambda: (denoiser(torch.randn(8, 4)) - 1).square().mean()


def test_it_minimises_repeats_and_gives_the_random_state_back():
    one, two, other = model(), model(), model()
    before, state = noisy_loss(one)().item(), None
    state = torch.random.get_rng_state()
    train(one, noisy_loss(one), steps=100, lr=3e-2, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert noisy_loss(one)().item() < 0.5 * before
    assert not one.training and not any(p.requires_grad or p.grad is not None for p in one.parameters())
    train(two, noisy_loss(two), steps=100, lr=3e-2, seed=0)
    train(other, noisy_loss(other), steps=100, lr=3e-2, seed=1)
    assert torch.equal(one.weight, two.weight) and not torch.equal(one.weight, other.weight)


def test_a_loss_that_is_not_finite_stops_it_by_name():
    losses = iter([1.0, float("nan")])
    denoiser = model()
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1: lower lr \(now 0.1\)"):
        train(denoiser, lambda: denoiser.weight.sum() * 0 + next(losses), steps=5, lr=0.1, seed=0)
