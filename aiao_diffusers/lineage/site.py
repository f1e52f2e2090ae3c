"""One place of a denoiser that can carry a constant direction, and what makes a layer unfit for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from ..mark.key import WatermarkKey


Kind = Literal[
    "attention", "attention_output", "query", "feed_forward", "projection_in", "projection_out", "modulated"
]


class Part(NamedTuple):
    """Of a parameter, under diffusers' own name, the equal part `number` from 0 `of` so many: a modulation's shift, or all."""

    parameter: str
    number: int = 0
    of: int = 1

    @property
    def module(self) -> str:
        """The module that has the parameter; "" for the denoiser itself."""
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class CarrierSite:
    """One activation that can carry a direction.

    Args:
        name (`str`): the norm that makes the activation, or the layer that takes it; diffusers' module name. The key's direction
            hangs on it.
        width (`int`): channels.
        kind (`Kind`): how the shift is made and absorbed.
        shifted (`tuple[Part, ...]`): biases that make the shift, each moved by all of it. Of a kind that can do without one
            (`attention_output`), the bias may be missing: then the rows of that layer make it.
        layers (`tuple[str, ...]`): the layers that take the activation and whose adapters inherit the direction. Softmax ignores
            what is constant over keys, so the gradients of an attention's keys lack it, unless they are normed or a second
            stream has keys of its own.
        absorbing (`tuple[str, ...]`): layers whose biases take W delta off again: all that take the activation; empty for the
            kinds that absorb in another way (`attention`, `query`).
    """

    name: str
    width: int
    kind: Kind
    shifted: tuple[Part, ...]
    layers: tuple[str, ...]
    absorbing: tuple[str, ...] = ()


Found = Iterator[tuple[str, CarrierSite | str]]
"""Place, and the site there or the reason why there is none."""


def direction(key: WatermarkKey, site: CarrierSite) -> np.ndarray:
    """v of a site: balanced +-1, `(width,)`, read-only, under a label of its own."""
    return _direction(key, site.name, site.width)


# A scan reads one key in thousands of files.
@lru_cache(maxsize=1024)
def _direction(key: WatermarkKey, name: str, width: int) -> np.ndarray:
    v = key.balanced(f"lineage/{name}", width)
    v.setflags(write=False)
    return v


def bias_fails(layer: Any, name: str) -> str | None:
    """Why a layer's bias cannot be moved; None where it can."""
    if getattr(layer, "weight", None) is None:
        return f"{name} is {type(layer).__name__}, which has no weight"
    return f"{name} has no bias" if getattr(layer, "bias", None) is None else None
