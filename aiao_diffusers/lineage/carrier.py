"""Put the key's directions into a denoiser's clean activations, and absorb them so that no output changes (`shift`)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.models.modeling_utils import get_parameter_dtype
from torch import nn

from ..denoiser.inputs import LatentData, fitting
from ..denoiser.price import predictions
from ..denoiser.setup import adapters, eval_mode
from ..denoiser.sites import unwrap
from ..errors import AlreadyMarkedError, ConfigError, NotTestableError, SiteError
from ..mark.carried import MAX_STRENGTH
from ..mark.key import WatermarkKey
from ..stats.hits import combined_log10_p, count_hits
from .rounding import Forwards, RoundingCost, compare, in_float32, measure_costs
from .shift import Edit, shift_sites
from .site import CarrierSite, direction
from .sites import plan_carrier


STRENGTH = 0.25
LIMIT = 1e-6
"""Of the price in float32."""
ROUNDING_LIMIT = 1.0
"""Of the price in the half precision that the weights are in, over what rounding to it costs."""
_PRESENT = -6.0
"""log10 p of the biases at which this key's carrier is there already."""


@dataclass(frozen=True)
class CarrierReport:
    """What was carried, and what it changed.

    Args:
        sites (`tuple[str, ...]`): that carry a direction now.
        left_out (`dict[str, str]`): places without one, and why.
        strength (`float`): of v, and of 1, over the site's rms.
        price (`float`): noise-prediction MSE against the model before, over its noise loss; in float32.
        largest_difference (`float`): of one predicted value, over the rms of all; in float32.
        dtype (`str`): that the model's weights are in.
        rounded (`Mapping[str, RoundingCost]`): what `bfloat16` and `float16` cost the model, and what they cost it before.
    """

    sites: tuple[str, ...]
    left_out: dict[str, str]
    strength: float
    price: float
    largest_difference: float
    dtype: str
    rounded: Mapping[str, RoundingCost]

    @property
    def in_words(self) -> str:
        """The report in one line."""
        told = f"{len(self.sites)} sites carry the mark's directions, {len(self.left_out)} places were left out"
        halves = ", ".join(
            f"{_percent(cost.price)} in {dtype} (rounding alone {_percent(cost.rounding)})"
            for dtype, cost in self.rounded.items()
        )
        return f"{told}; it changes predictions by {_percent(self.price)} of the noise loss in float32, {halves}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "sites": list(self.sites), "in_words": self.in_words}


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
    """Make a denoiser carry the key's directions, in place; `carry` with forwards on noised latents.

    Args:
        denoiser (`nn.Module`): of plain floating-point weights, without active adapters.
        key (`WatermarkKey`): the owner's; under scheme `aiao-2` drawn with the beacon.
        data (`LatentData`): a few clean latents with conditioning: the size of the activations is measured on them.
        scheduler: the noise schedule, a diffusers scheduler.
        strength (`float`, defaults to 0.25): as of `carry`.
        samples (`int`, defaults to 16): noised latents, each in six forwards.
        seed (`int`, defaults to 0): of rows, noise and timesteps.
    Returns:
        `CarrierReport`.
    Raises:
        as `carry`. ConfigError: samples out of range.
    """
    if samples < 1:
        raise ConfigError(f"samples is {samples}, expected at least 1.")
    inner = unwrap(denoiser)
    bank = fitting(data, inner)
    return carry(
        inner, key, lambda: predictions(inner, bank, scheduler, samples=samples, seed=seed), strength=strength
    )


@torch.no_grad()
def carry(denoiser: nn.Module, key: WatermarkKey, forwards: Forwards, *, strength: float = STRENGTH) -> CarrierReport:
    """Make a denoiser carry the key's directions, in place, whatever way it is called.

    Args:
        denoiser (`nn.Module`): of plain floating-point weights, without active adapters.
        key (`WatermarkKey`): the owner's; under scheme `aiao-2` drawn with the beacon.
        forwards: runs the denoiser on the same few inputs at each of six calls, in the dtype that it is then in; what it predicts, and
            what it should have predicted or zeros, `(N, ...)` each, float32 on the CPU.
        strength (`float`, defaults to 0.25): of the secret and of the public direction, in units of a site's rms; at most 4.
    Returns:
        `CarrierReport`.
    Raises:
        ConfigError: strength out of range. SiteError: no site that carries a direction exactly; or the predictions change by more than
        1e-6 of the loss in float32, or in the half precision that the weights are in by more than what rounding to it costs:
        then the weights are put back. AlreadyMarkedError: this key's carrier is there already. NotTestableError: active
        adapters, quantised or offloaded weights.
    """
    if not 0 < strength <= MAX_STRENGTH:
        raise ConfigError(f"strength is {strength}, expected a number above 0 and at most {MAX_STRENGTH:g}.")
    denoiser = unwrap(denoiser)
    if active := adapters(denoiser):
        raise NotTestableError(f"adapters {active} are active: fuse them or take them off first.")
    plan = plan_carrier(denoiser)
    if not plan.sites:
        raise SiteError(f"{type(denoiser).__name__} has no site for a carrier: {_first(plan.left_out)}")
    _refuse_second(denoiser, key, plan.sites)
    dtype = get_parameter_dtype(denoiser)
    with eval_mode(denoiser), in_float32(denoiser):
        with _measuring(denoiser, plan.sites) as squares:
            before, truth = forwards()
        edit = Edit(denoiser)
        used, left_out = shift_sites(edit, key, plan.sites, squares, strength)
        if not used:
            raise SiteError(f"no site carries a direction exactly: {_first(left_out)}")
        costs = measure_costs(denoiser, edit, forwards, before, truth)
        with edit.applied() as keep:
            price, largest = compare(before, forwards()[0], truth)
            _refuse_price(type(denoiser).__name__, price, costs)
            keep()
    rounded = {str(half)[6:]: cost for half, cost in costs.items()}
    names = tuple(site.name for site in used)
    return CarrierReport(names, plan.left_out | left_out, strength, price, largest, str(dtype)[6:], rounded)


def _percent(share: float) -> str:
    """For people: no exponent, and nothing smaller than anybody asks for."""
    if share < 1e-6:
        return "under 0.0001%"
    text = f"{100 * share:.2g}%"
    return f"{100 * share:.0f}%" if share > 0.99 else text


def _first(left_out: Mapping[str, str]) -> str:
    if not left_out:
        return "none of its blocks is known."
    place, reason = next(iter(left_out.items()))
    return f"{len(left_out)} places left out, first {place}: {reason}."


def _refuse_price(denoiser: str, price: float, costs: Mapping[torch.dtype, RoundingCost]) -> None:
    if not price <= LIMIT:
        raise SiteError(f"the predictions of {denoiser} changed by {price:g} of the loss: nothing was kept.")
    for dtype, cost in costs.items():
        if cost.exact and not cost.price <= ROUNDING_LIMIT * cost.rounding:
            raise SiteError(
                f"in {str(dtype)[6:]} the predictions of {denoiser} changed by {cost.price:g} of the loss, rounding to it by "
                f"{cost.rounding:g}: nothing was kept. Load the weights in float32, as they were trained, or lower the strength."
            )


def _refuse_second(denoiser: nn.Module, key: WatermarkKey, sites: tuple[CarrierSite, ...]) -> None:
    found = []
    for site in sites:
        part = site.shifted[0]
        bias = getattr(denoiser.get_submodule(part.module), part.parameter.rpartition(".")[2], None)
        if bias is not None and not bias.is_meta and site.kind != "attention_output":
            d = bias.double().cpu().reshape(part.of, -1)[part.number].numpy()
            found.append(count_hits(d, direction(key, site)))
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
