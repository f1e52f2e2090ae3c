"""Probing finds where answers lie, with the key unknown."""

import pytest
import torch
from _attacks import ANSWERS, answer
from _tiny import tiny_unet

from aiao_diffusers.bench.attacks.exposed_mark import by_channel, expose
from aiao_diffusers.bench.attacks.probing import principal
from aiao_diffusers.bench.registry import ATTACKS


@pytest.mark.slow
def test_probing_finds_where_answers_lie_and_lowers_them_there(context):
    with expose(tiny_unet(1), context) as target:
        bases = principal(target, 32, 2, ANSWERS)

    def along(denoiser):
        moved = answer(denoiser, context)[1]
        return sum((by_channel(moved[n]) @ basis).square().sum().item() for n, basis in bases.items())

    before = answer(tiny_unet(1), context)[1]
    for name, basis in bases.items():
        everywhere = by_channel(before[name]).square().sum().item()
        within = (by_channel(before[name]) @ basis).square().sum().item()
        assert within > 0.4 * everywhere  # two of eight directions would hold a quarter by chance
        assert torch.allclose(basis.T @ basis, torch.eye(2), atol=1e-5)
    attacked = ATTACKS["probing"].run(tiny_unet(1), context, steps=30, lr=3e-3, probes=32, directions=2, weight=10.0)
    assert along(attacked) < 0.7 * along(tiny_unet(1))
