"""Put the key's directions into a denoiser's clean activations, and absorb them so that no output changes.

At a site of rms r the shift is delta = r (strength v + strength 1): v the key's balanced secret vector, 1 a public direction that
fixes the sign in which an adapter inherits it. What absorbs it is

- a bias behind the site, less W delta: linear, so that an average of weights stays as exact;
- for an attention's keys nothing, as softmax ignores what is constant over keys; for its values the output layer's bias, as what
  is constant over values comes through unchanged;
- for queries without a bias, and to shift values without one, the plane that a layer norm's outputs lie in: w.x = k for every
  token, with w = 1 / gamma and k = sum(beta / gamma), so that W - (W delta) w^T / k maps x + delta to W x. Both factors change,
  so an average with another model is off by a part of W delta.

Source: our choice; everything is computed in float64 and rounded once.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..denoiser.inputs import LatentData, fitting
from ..denoiser.price import compare_predictions, predictions
from ..denoiser.setup import adapters, eval_mode
from ..denoiser.sites import unwrap
from ..errors import AlreadyMarkedError, ConfigError, NotTestableError, SiteError
from ..mark.key import WatermarkKey
from ..stats.hits import combined_log10_p, count_hits
from .sites import CarrierSite, plan_carrier


STRENGTH = 0.25
MAX_STRENGTH = 4.0
VALUE_SHARE = 0.5
"""Of the strength, for an attention's values that have no bias: alone they cost an average with another model more than all other
sites together (0.07% at full strength, 50:50, on the example U-Net), and the cost grows with the square."""
SMALLEST_GAMMA = 0.02
"""Of a norm's scales, the smallest over their rms: 1 / gamma would let one channel decide the plane."""
SMALLEST_LEVER = 0.02
"""Of a plane, |k| over |w| times the size of a token: what it absorbs grows by its inverse."""
LIMIT = {torch.float32: 1e-6, torch.float64: 1e-6}
"""Of the price, by dtype; in half precision the rounding of a few weights is what is seen."""
HALF_LIMIT = 1e-2
_PRESENT = -6.0
"""log10 p of the biases at which this key's carrier is there already."""


@dataclass(frozen=True)
class CarrierReport:
    """What was carried, and what it changed.

    Args:
        sites (`tuple[str, ...]`): that carry a direction now.
        left_out (`dict[str, str]`): places without one, and why.
        strength (`float`): of v, and of 1, over the site's rms.
        price (`float`): noise-prediction MSE against the model before, over its noise loss.
        largest_difference (`float`): of one predicted value, over the rms of all; in the model's own `dtype`.
        dtype (`str`): that the model computes in.
        samples (`int`): noised latents that both were measured on.
    """

    sites: tuple[str, ...]
    left_out: dict[str, str]
    strength: float
    price: float
    largest_difference: float
    dtype: str
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "sites": list(self.sites)}


def direction(key: WatermarkKey, site: CarrierSite) -> np.ndarray:
    """v of a site: balanced +-1, `(width,)`, under a label of its own."""
    return key.balanced(f"lineage/{site.name}", site.width)


@torch.no_grad()
def add_carrier(
    denoiser: nn.Module,
    key: WatermarkKey,
    data: LatentData,
    *,
    scheduler: Any,
    strength: float = STRENGTH,
    samples: int = 16,
    seed: int = 0,
) -> CarrierReport:
    """Make a denoiser carry the key's directions, in place.

    Args:
        denoiser (`nn.Module`): of plain floating-point weights, without active adapters.
        key (`WatermarkKey`): the owner's; under scheme `aiao-2` drawn with the beacon.
        data (`LatentData`): a few clean latents with conditioning: the size of the activations is measured on them.
        scheduler: the noise schedule, a diffusers scheduler.
        strength (`float`, defaults to 0.25): of the secret and of the public direction, in units of a site's rms; at most 4.
        samples (`int`, defaults to 16): noised latents, each in three forwards.
        seed (`int`, defaults to 0): of rows, noise and timesteps.
    Returns:
        `CarrierReport`.
    Raises:
        ConfigError: strength or samples out of range. SiteError: no site that carries a direction exactly; or the predictions change
        by more than rounding, then the weights are put back. AlreadyMarkedError: this key's carrier is there already.
        NotTestableError: active adapters, quantised or offloaded weights.
    """
    if not 0 < strength <= MAX_STRENGTH:
        raise ConfigError(f"strength is {strength}, expected a number above 0 and at most {MAX_STRENGTH:g}.")
    if samples < 1:
        raise ConfigError(f"samples is {samples}, expected at least 1.")
    denoiser = unwrap(denoiser)
    if active := adapters(denoiser):
        raise NotTestableError(f"adapters {active} are active: fuse them or take them off first.")
    plan = plan_carrier(denoiser)
    if not plan.sites:
        told = next(iter(plan.left_out.items()), ("no transformer block", "none was found"))
        raise SiteError(
            f"{type(denoiser).__name__} has no site for a carrier: {len(plan.left_out)} places left out, first {told}"
        )
    _refuse_second(denoiser, key, plan.sites)
    bank, draws = fitting(data, denoiser), {"samples": samples, "seed": seed}
    with eval_mode(denoiser):
        with _measuring(denoiser, plan.sites) as squares:
            before, truth = predictions(denoiser, bank, scheduler, **draws)
        edit = _Edit(denoiser)
        used, left_out = _shift_all(edit, key, plan.sites, squares, strength)
        if not used:
            raise SiteError(f"no site carries a direction exactly: {next(iter(left_out.items()))}")
        with edit.applied() as keep:
            after = predictions(denoiser, bank, scheduler, **draws)[0]
            price = compare_predictions(before, after, truth)["ratio"]
            largest = float((after - before).abs().max() / before.square().mean().sqrt())
            dtype = next(denoiser.parameters()).dtype
            if not price <= LIMIT.get(dtype, HALF_LIMIT):
                raise SiteError(
                    f"the predictions of {type(denoiser).__name__} changed by {price:g}: nothing was kept."
                )
            keep()
    names = tuple(site.name for site in used)
    return CarrierReport(names, plan.left_out | left_out, strength, price, largest, str(dtype)[6:], samples)


def _refuse_second(denoiser: nn.Module, key: WatermarkKey, sites: tuple[CarrierSite, ...]) -> None:
    found = []
    for site in sites:
        bias = getattr(denoiser.get_submodule(site.shifted), "bias", None)
        if bias is not None and not bias.is_meta and site.kind != "attention_output":
            found.append(count_hits(bias.double().cpu().numpy(), direction(key, site)))
    if found and combined_log10_p(found) <= _PRESENT:
        raise AlreadyMarkedError(f"the model carries the directions of {key.owner!r}'s key already.")


@contextmanager
def _measuring(denoiser: nn.Module, sites: tuple[CarrierSite, ...]) -> Iterator[dict[str, list[float]]]:
    """Fill, during the block's forwards, each site's mean squares of its activation."""
    squares: dict[str, list[float]] = {site.name: [] for site in sites}

    def listen(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            squares[name].append(float(args[0].detach().double().square().mean()))

        return hook

    hooks = [denoiser.get_submodule(s.layers[0]).register_forward_pre_hook(listen(s.name)) for s in sites]
    try:
        yield squares
    finally:
        for hook in hooks:
            hook.remove()


class _Edit:
    """New values of a denoiser's parameters in float64, before any is written."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.new: dict[int, tuple[nn.Parameter, torch.Tensor]] = {}

    def value(self, module: str, leaf: str = "weight") -> torch.Tensor | None:
        """The value so far, weights as matrices; None where the layer has no such parameter."""
        parameter = getattr(self.denoiser.get_submodule(module), leaf, None)
        if parameter is None:
            return None
        if id(parameter) not in self.new:
            plain = type(parameter) is nn.Parameter and not parameter.is_meta and parameter.is_floating_point()
            if not plain:
                raise NotTestableError(f"{module}.{leaf} is quantised or offloaded: load the model whole, in floats.")
            self.new[id(parameter)] = (parameter, parameter.detach().double().cpu())
        value = self.new[id(parameter)][1]
        return value.flatten(1) if value.ndim > 2 else value

    def set(self, module: str, leaf: str, value: torch.Tensor) -> None:
        parameter = getattr(self.denoiser.get_submodule(module), leaf)
        self.new[id(parameter)] = (parameter, value.reshape(parameter.shape))

    def shift_bias(self, module: str, by: torch.Tensor) -> None:
        bias = self.value(module, "bias")
        assert bias is not None  # a site has it
        self.set(module, "bias", bias + by)

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


def _shift_all(
    edit: _Edit,
    key: WatermarkKey,
    sites: tuple[CarrierSite, ...],
    squares: Mapping[str, list[float]],
    strength: float,
) -> tuple[list[CarrierSite], dict[str, str]]:
    """Shift and absorb site by site; those used, and those left out by the model's values."""
    used: list[CarrierSite] = []
    left_out: dict[str, str] = {}
    plane: _Plane | None = None
    for site in sites:
        rms = math.sqrt(float(np.mean(squares[site.name] or [math.nan])))
        if not 0 < rms < math.inf:
            left_out[site.name] = f"its activations have rms {rms:g}"
            continue
        delta = rms * strength * (torch.from_numpy(direction(key, site)).double() + 1)
        if site.kind in ("attention", "query"):
            free = all(edit.value(layer, "bias") is not None for layer in site.layers)
            plane = None if free else _plane(edit, site.shifted, delta)
            if not free and plane is None:
                left_out[site.name] = "its norm's plane does not absorb a constant (a scale or the level is near 0)"
                continue
            _shift_attention(edit, site, delta, plane)
        elif site.kind == "attention_output":
            if edit.value(site.shifted, "bias") is None and (
                plane is None or sites[sites.index(site) - 1] not in used
            ):
                left_out[site.name] = "the norm before its values has no plane for it"
                continue
            _shift_values(edit, site, delta if plane is None else VALUE_SHARE * delta, plane)
        else:
            _shift_before_bias(edit, site, delta)
        used.append(site)
    return used, left_out


def _plane(edit: _Edit, norm: str, delta: torch.Tensor) -> _Plane | None:
    """The plane behind a layer norm once its bias is shifted; None where it is no use."""
    gamma, beta = edit.value(norm), edit.value(norm, "bias")
    assert gamma is not None and beta is not None
    if float(gamma.abs().min()) < SMALLEST_GAMMA * float(gamma.square().mean().sqrt()):
        return None
    w = 1 / gamma
    k = float(w @ (beta + delta))
    size = float((gamma.square() + (beta + delta).square()).sum().sqrt())
    return _Plane(w, k) if abs(k) >= SMALLEST_LEVER * float(w.norm()) * size else None


def _shift_attention(edit: _Edit, site: CarrierSite, delta: torch.Tensor, plane: _Plane | None) -> None:
    """Shift an attention's norm. Queries absorb it; values pass it on to the output layer's bias; keys are left alone."""
    edit.shift_bias(site.shifted, delta)
    query = site.layers[0]
    weight = edit.value(query)
    assert weight is not None
    if edit.value(query, "bias") is not None:
        edit.shift_bias(query, -weight @ delta)
    elif plane is not None:
        edit.set(query, "weight", weight - torch.outer(weight @ delta, plane.w) / plane.k)
    if site.kind == "attention":
        values = edit.value(site.layers[1])
        assert values is not None
        _absorb(edit, site.layers[1].removesuffix("to_v") + "to_out.0", values @ delta)


def _shift_values(edit: _Edit, site: CarrierSite, delta: torch.Tensor, plane: _Plane | None) -> None:
    """Shift an attention's values by a constant, which comes through to the output layer."""
    if edit.value(site.shifted, "bias") is not None:
        edit.shift_bias(site.shifted, delta)
    elif plane is not None:
        weight = edit.value(site.shifted)
        assert weight is not None
        edit.set(site.shifted, "weight", weight + torch.outer(delta, plane.w) / plane.k)
    _absorb(edit, site.name, delta)


def _shift_before_bias(edit: _Edit, site: CarrierSite, delta: torch.Tensor) -> None:
    """Shift what enters a layer with a bias."""
    edit.shift_bias(site.shifted, delta)
    _absorb(edit, site.layers[0], delta)


def _absorb(edit: _Edit, layer: str, delta: torch.Tensor) -> None:
    weight = edit.value(layer)
    assert weight is not None
    edit.shift_bias(layer, -weight @ delta)
