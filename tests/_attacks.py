"""An attack on a miniature, which must leave the clean twin alone, and what its out-sites answer to masks."""

import copy
from typing import Any

import torch
from _tiny import tiny_unet
from torch import nn

from aiao_diffusers.bench.attacks.exposed_mark import Masks, Moved, everything, expose
from aiao_diffusers.bench.context import AttackContext
from aiao_diffusers.bench.registry import ATTACKS


ANSWERS = 8  # samples


def attacked(context: AttackContext, name: str, denoiser: nn.Module | None = None, **hyper: Any) -> nn.Module:
    denoiser = tiny_unet(1) if denoiser is None else denoiser
    before = {n: v.clone() for n, v in context.base.state_dict().items()}
    after = ATTACKS[name].run(copy.deepcopy(denoiser), context, **hyper)
    assert all(torch.equal(v, before[n]) for n, v in context.base.state_dict().items())
    return after


def same(a: nn.Module, b: nn.Module, **tolerance: float) -> bool:
    return all(torch.allclose(v, b.state_dict()[n], **tolerance) for n, v in a.state_dict().items())


def answer(denoiser: nn.Module, context: AttackContext, masks: Masks | None = None) -> tuple[float, Moved]:
    """Mean square of what masks (fresh random ones by default) move, on the same draws for every model."""
    with expose(denoiser, context) as target, torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = target.masks(ANSWERS) if masks is None else masks
        moved = target.forward(target.draw(ANSWERS), drawn, torch.ones(ANSWERS))[1]
        return everything(moved).item(), moved
