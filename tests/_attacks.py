"""An attack on a miniature, which must leave the clean twin alone."""

import copy
from typing import Any

import torch
from _tiny import tiny_unet
from torch import nn

from aiao_diffusers.bench.context import AttackContext
from aiao_diffusers.bench.registry import ATTACKS


def attacked(context: AttackContext, name: str, denoiser: nn.Module | None = None, **hyper: Any) -> nn.Module:
    denoiser = tiny_unet(1) if denoiser is None else denoiser
    before = {n: v.clone() for n, v in context.base.state_dict().items()}
    after = ATTACKS[name].run(copy.deepcopy(denoiser), context, **hyper)
    assert all(torch.equal(v, before[n]) for n, v in context.base.state_dict().items())
    return after


def same(a: nn.Module, b: nn.Module, **tolerance: float) -> bool:
    return all(torch.allclose(v, b.state_dict()[n], **tolerance) for n, v in a.state_dict().items())
