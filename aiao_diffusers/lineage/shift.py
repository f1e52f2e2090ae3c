"""The arithmetic of the carrier: move an activation by a constant, and absorb it so that no output changes.

At a site of rms r the shift is delta = r (strength v + strength 1): v the key's balanced secret vector, 1 a public direction that
fixes the sign in which an adapter inherits it. What absorbs it is

- a bias behind the site, less W delta: linear, so that an average of weights stays as exact;
- for an attention's keys nothing, as softmax ignores what is constant over keys; for its values the output layer's bias, as what
  is constant over values comes through unchanged;
- for queries without a bias, and to shift values without one, the plane that a layer norm's outputs lie in: w.x = k for every
  token, with w = 1 / gamma and k = sum(beta / gamma), so that W - (W delta) w^T / k maps x + delta to W x. Both factors change,
  so an average with another model is off by a part of W delta.

Everything is computed in float64 and rounded once. A shifted bias is first rounded to bfloat16, and what absorbs it is computed for
what it came to: then no dtype of common use changes the shift itself.

Source: our choice.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import NotTestableError
from ..mark.key import WatermarkKey
from .site import CarrierSite, Part, direction


VALUE_SHARE = 0.5
"""Of the strength, for an attention's values that have no bias: alone they cost an average with another model more than all other
sites together (0.07% at full strength, 50:50, on the example U-Net), and the cost grows with the square."""
SMALLEST_GAMMA = 0.02
"""Of a norm's scales, the smallest over their rms: 1 / gamma would let one channel decide the plane."""
SMALLEST_LEVER = 0.02
"""Of a plane, |k| over |w| times the size of a token: what it absorbs grows by its inverse."""

COARSEST = 0.05
"""Of a shift, the most that rounding it may change."""


class Edit:
    """New values of a denoiser's parameters in float64, before any is written."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.new: dict[int, tuple[nn.Parameter, torch.Tensor]] = {}

    def value(self, name: str) -> torch.Tensor | None:
        """A parameter's value so far on the CPU, weights as matrices; None where the layer has no such parameter."""
        parameter = self._parameter(name)
        if parameter is None:
            return None
        if id(parameter) in self.new:
            value = self.new[id(parameter)][1]
        else:
            plain = type(parameter) is nn.Parameter and not parameter.is_meta and parameter.is_floating_point()
            if not plain:
                raise NotTestableError(f"{name} is quantised or offloaded: load the model whole, in floats.")
            value = parameter.detach().double().cpu()
        return value.flatten(1) if name.endswith(".weight") and value.ndim > 2 else value

    def has(self, name: str) -> bool:
        """Whether the denoiser has such a parameter."""
        return self._parameter(name) is not None

    def set(self, name: str, value: torch.Tensor) -> None:
        """Let a parameter have this value."""
        parameter = self._parameter(name)
        assert parameter is not None  # a site has it
        self.new[id(parameter)] = (parameter, value.reshape(parameter.shape))

    def shift(self, part: Part, by: torch.Tensor, coarse: bool = False) -> torch.Tensor:
        """Move a part of a bias or table; by how much it was, which `coarse` makes one that bfloat16 keeps."""
        whole = self.value(part.parameter)
        assert whole is not None  # a site has it
        rows = whole.reshape(part.of, -1).clone()
        old = rows[part.number].clone()
        wanted = old + by
        if coarse:
            rounded = wanted.bfloat16().double()
            wanted = torch.where((rounded - wanted).abs() <= COARSEST * by.abs(), rounded, wanted)
        rows[part.number] = wanted
        self.set(part.parameter, rows)
        return wanted - old

    def absorb(self, layer: str, delta: torch.Tensor) -> None:
        """Let a layer's bias take W delta off again."""
        weight, bias = self.value(f"{layer}.weight"), self.value(f"{layer}.bias")
        assert weight is not None and bias is not None  # a site has both
        self.set(f"{layer}.bias", bias - weight @ delta)

    def _parameter(self, name: str) -> Any:
        module, _, leaf = name.rpartition(".")
        return getattr(self.denoiser.get_submodule(module), leaf, None)

    @contextmanager
    def applied(self) -> Iterator[Any]:
        """The new values for the length of the block, and for good once the function that is yielded was called."""
        old = [(parameter, parameter.data) for parameter, _ in self.new.values()]
        kept: list[bool] = []
        try:
            for parameter, value in self.new.values():
                parameter.data = value.to(parameter.device, parameter.dtype)
            yield lambda: kept.append(True)
        finally:
            for parameter, data in [] if kept else old:
                parameter.data = data


@dataclass(frozen=True)
class _Plane:
    """w.x = k for every token that a layer norm puts out."""

    w: torch.Tensor
    k: float


def shift_sites(
    edit: Edit,
    key: WatermarkKey,
    sites: tuple[CarrierSite, ...],
    squares: Mapping[str, list[float]],
    strength: float,
) -> tuple[list[CarrierSite], dict[str, str]]:
    """Shift and absorb site by site.

    Args:
        edit (`Edit`): takes the new values.
        key (`WatermarkKey`): the owner's.
        sites (`tuple[CarrierSite, ...]`): in the order of the plan.
        squares: each site's mean squares of its activation.
        strength (`float`): in units of a site's rms.
    Returns:
        sites used, and those left out by the model's values with the reason.
    """
    used: list[CarrierSite] = []
    left_out: dict[str, str] = {}
    plane: _Plane | None = None
    for site in sites:
        rms = math.sqrt(float(np.mean(squares[site.name] or [math.nan])))
        if not 0 < rms < math.inf:
            left_out[site.name] = f"its activations have rms {rms:g}"
            continue
        delta = rms * strength * (torch.tensor(direction(key, site)).double() + 1)
        if site.kind in ("attention", "query"):
            free = all(edit.has(f"{layer}.bias") for layer in site.layers)
            plane = None if free else _plane(edit, site.shifted[0].module, delta)
            if not free and plane is None:
                left_out[site.name] = "its norm's plane does not absorb a constant (a scale or the level is near 0)"
                continue
            plane = _shift_attention(edit, site, delta, plane)
        elif site.kind == "attention_output" and not edit.has(site.shifted[0].parameter):
            if plane is None or sites[sites.index(site) - 1] not in used:
                left_out[site.name] = "the norm before its values has no plane for it"
                continue
            _shift_values(edit, site, VALUE_SHARE * delta, plane)
        else:
            _shift_biases(edit, site, delta)
        used.append(site)
    return used, left_out


def _plane(edit: Edit, norm: str, delta: torch.Tensor) -> _Plane | None:
    """The plane behind a layer norm once its bias is shifted; None where it is no use."""
    gamma, beta = edit.value(f"{norm}.weight"), edit.value(f"{norm}.bias")
    assert gamma is not None and beta is not None
    if float(gamma.abs().min()) < SMALLEST_GAMMA * float(gamma.square().mean().sqrt()):
        return None
    w = 1 / gamma
    k = float(w @ (beta + delta))
    size = float((gamma.square() + (beta + delta).square()).sum().sqrt())
    return _Plane(w, k) if abs(k) >= SMALLEST_LEVER * float(w.norm()) * size else None


def _shift_attention(edit: Edit, site: CarrierSite, delta: torch.Tensor, plane: _Plane | None) -> _Plane | None:
    """Shift an attention's norm. Queries absorb it; values pass it on to the output layer's bias; keys are left alone."""
    delta = edit.shift(site.shifted[0], delta, coarse=True)
    if plane is not None:
        beta = edit.value(site.shifted[0].parameter)
        assert beta is not None
        plane = _Plane(plane.w, float(plane.w @ beta))
    query = site.layers[0]
    weight = edit.value(f"{query}.weight")
    assert weight is not None
    if edit.has(f"{query}.bias"):
        edit.absorb(query, delta)
    elif plane is not None:
        edit.set(f"{query}.weight", weight - torch.outer(weight @ delta, plane.w) / plane.k)
    if site.kind == "attention":
        values = edit.value(f"{site.layers[1]}.weight")
        assert values is not None
        edit.absorb(site.layers[1].removesuffix("to_v") + "to_out.0", values @ delta)
    return plane


def _shift_values(edit: Edit, site: CarrierSite, delta: torch.Tensor, plane: _Plane) -> None:
    """Shift an attention's values, which have no bias, by a constant, which comes through to the output layer."""
    name = f"{site.shifted[0].module}.weight"
    weight = edit.value(name)
    assert weight is not None
    edit.set(name, weight + torch.outer(delta, plane.w) / plane.k)
    edit.absorb(site.name, delta)


def _shift_biases(edit: Edit, site: CarrierSite, delta: torch.Tensor) -> None:
    """Shift by a bias what enters layers that each have one."""
    # Several parts must move alike: what rounding makes of the first is what the others are moved by.
    delta = edit.shift(site.shifted[0], delta, coarse=True)
    for part in site.shifted[1:]:
        edit.shift(part, delta)
    for layer in site.absorbing:
        edit.absorb(layer, delta)
