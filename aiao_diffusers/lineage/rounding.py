"""What rounding to half precision costs a model that carries the key, beside what it costs any model.

Weights are rounded and forwards computed in float32, so the figures are the same on every device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..denoiser.price import compare_predictions
from .shift import Edit


Forwards = Callable[[], tuple[torch.Tensor, torch.Tensor]]
"""Runs the denoiser on the same inputs at each call: what it predicts, float32 on the CPU, and what it should have predicted (zeros
where that is not known)."""
HALVES = {torch.bfloat16: 7, torch.float16: 10}
"""Bits of the mantissa."""
_SMALLEST = 2.0**-24  # of float16, the step of its smallest numbers
_MOVED = 1 / 12
"""Share of weights moved by one step: rounding's error has this variance, in steps."""


@dataclass(frozen=True)
class RoundingCost:
    """What a dtype costs.

    Args:
        price (`float`): of the carrier, both models rounded: prediction MSE over the model's own loss.
        largest_difference (`float`): of one predicted value, both models rounded, over the rms of all.
        rounding (`float`): price of rounding alone, of the model before. Where its weights are of this dtype already, of one that
            moves them by as much: each to a neighbour with chance 1/12.
        exact (`bool`): whether they are.
    """

    price: float
    largest_difference: float
    rounding: float
    exact: bool


def compare(before: torch.Tensor, after: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Price, and the largest difference over the rms."""
    largest = float((after - before).abs().max() / before.square().mean().sqrt())
    return compare_predictions(before, after, truth)["ratio"], largest


def measure_costs(
    denoiser: nn.Module, edit: Edit, forwards: Forwards, before: torch.Tensor, truth: torch.Tensor
) -> dict[torch.dtype, RoundingCost]:
    """What each half precision costs.

    Args:
        denoiser (`nn.Module`): in float32, without the edit.
        edit (`Edit`): that makes it carry the key.
        forwards: runs it.
        before (`torch.Tensor`): what it predicts.
        truth (`torch.Tensor`): what it should, or zeros.
    """
    costs = {}
    for dtype in HALVES:
        exact = all(torch.equal(p.data, p.data.to(dtype).to(p.dtype)) for p in _rounding(denoiser))
        own = before
        with _changed(denoiser, _move(dtype) if exact else _round(dtype)):
            moved = forwards()[0]
        if not exact:
            own = moved
        with edit.applied(), _changed(denoiser, _round(dtype)):
            after = forwards()[0]
        costs[dtype] = RoundingCost(*compare(own, after, truth), compare(before, moved, truth)[0], exact)
    return costs


@contextmanager
def in_float32(denoiser: nn.Module) -> Iterator[None]:
    """Compute in float32 for the length of the block; each parameter and buffer gets its dtype back, rounded where it changed."""
    narrow = [(value, value.dtype) for value in (*denoiser.parameters(), *denoiser.buffers()) if value.dtype in HALVES]
    try:
        for value, _ in narrow:
            value.data = value.data.float()
        yield
    finally:
        for value, dtype in narrow:
            value.data = value.data.to(dtype)


def _rounding(denoiser: Any) -> list[nn.Parameter]:
    """The parameters that a half precision rounds: diffusers keeps some modules of some classes in float32."""
    kept = set(getattr(denoiser, "_keep_in_fp32_modules", None) or ())
    named = ((name, p) for name, p in denoiser.named_parameters() if p.is_floating_point())
    return [p for name, p in named if not kept & set(name.split("."))]


@contextmanager
def _changed(denoiser: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Changed weights for the length of the block; only those that differ are held twice."""
    old = []
    try:
        for parameter in _rounding(denoiser):
            new = change(parameter.data)
            if not torch.equal(new, parameter.data):
                old.append((parameter, parameter.data))
                parameter.data = new
        yield
    finally:
        for parameter, data in old:
            parameter.data = data


def _round(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda value: value.to(dtype).to(value.dtype)


def _move(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Weights by as much as rounding to `dtype` moves those that lie between its numbers; always the same draw."""
    generator = torch.Generator().manual_seed(0)

    def move(value: torch.Tensor) -> torch.Tensor:
        drawn = torch.rand(value.shape, generator=generator).to(value.device)
        sign = (drawn < _MOVED / 2).to(value.dtype) - (drawn > 1 - _MOVED / 2).to(value.dtype)
        step = torch.ldexp(torch.ones_like(value), torch.frexp(value).exponent - 1 - HALVES[dtype])
        return torch.where(value == 0, value, value + sign * step.clamp(min=_SMALLEST))

    return move
