"""The algebra of adapters: one module's factors -> its new weight and bias.

LoRA (linear, conv, CP), LoHa, LoKr, GLoRA, VeRA, full differences, norms learned anew, and DoRA on top; OFT and BOFT turn
a weight and have a module of their own, `rotations`. A new formula begins here, its keys in `adapter_keys`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Any

import torch

from ..errors import NotTestableError, SuspectError
from ..files.text import short
from .adapter_keys import MODIFIERS, Group, fit
from .patterns import matcher
from .rotations import Cayley, turn
from .unread_kinds import NOT_READ


SCALED = ("lora", "loha", "lokr", "glora")
"""Algorithms whose factors have a rank that an alpha goes with."""


@dataclass(frozen=True)
class Scaling:
    """peft's rule for one adapter: alpha / r, or alpha / sqrt(r) with rsLoRA, with exceptions by module name.

    Args:
        cayley: of an OFT, which has no alpha; None for every other kind.
    """

    r: int | None = None
    alpha: float | None = None
    rank_pattern: Mapping[str, Any] = field(default_factory=dict)
    alpha_pattern: Mapping[str, Any] = field(default_factory=dict)
    rslora: bool = False
    cayley: Cayley | None = None

    def of(self, module: str, rank: int | None) -> float:
        """Factor for `module` whose factors have `rank`; None when they do not show one (full LoKr)."""
        r = _by_pattern(self.rank_pattern, module, self.r)
        if rank is None:
            rank = r
        elif r is not None and r != rank:
            raise SuspectError(
                f"{short(module)}: the config says rank {r}, the weights have {rank}; they do not belong"
            )
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        if alpha is None or rank is None:
            return 1.0
        return float(alpha) / (sqrt(rank) if self.rslora else rank)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """peft's lookup: the first pattern that matches the module's name or a dotted tail of it."""
    return next((value for pattern, value in patterns.items() if matcher(pattern)(module)), default)


def _matmul(group: Group, left: str, right: str, shape: tuple[int, ...]) -> torch.Tensor:
    """`left @ right` flattened to matrices, for a weight of `shape`; checked before anything is multiplied."""
    a, b = group.factors[left], group.factors[right]
    fit(a.dim() >= 2 and a.shape[0] == shape[0], group, left, shape)
    fit(b.dim() >= 2 and prod(b.shape[1:]) == prod(shape[1:]), group, right, shape)
    fit(prod(a.shape[1:]) == b.shape[0], group, left, shape)
    return a.flatten(1) @ b.flatten(1)


def _tucker(group: Group, core: str, left: str, right: str, shape: tuple[int, ...]) -> torch.Tensor:
    """CP form: core `(m, n, *kernel)`, left `(m, out)`, right `(n, in)` -> `(out, in, *kernel)`."""
    t, a, b = (group.factors[role] for role in (core, left, right))
    fit(a.dim() >= 2 and prod(a.shape[1:]) == shape[0], group, left, shape)
    fit(b.dim() >= 2 and prod(b.shape[1:]) == shape[1], group, right, shape)
    fit(t.shape == (a.shape[0], b.shape[0], *shape[2:]), group, core, shape)
    return torch.einsum("mn...,mo,ni->oi...", t, a.flatten(1), b.flatten(1))


def _lora(group: Group, shape: tuple[int, ...]) -> torch.Tensor:
    if "mid" not in group.factors:
        return _matmul(group, "up", "down", shape)
    up = group.factors["up"]
    fit(up.dim() >= 2, group, "up", shape)
    turned = Group(group.module, group.layout, {**group.factors, "up": up.flatten(1).T}, group.keys)
    return _tucker(turned, "mid", "up", "down", shape)


def _loha(group: Group, shape: tuple[int, ...]) -> torch.Tensor:
    halves = []
    for n in "12":
        if f"hada_t{n}" in group.factors:
            halves.append(_tucker(group, f"hada_t{n}", f"hada_w{n}_a", f"hada_w{n}_b", shape).reshape(shape))
        else:
            halves.append(_matmul(group, f"hada_w{n}_a", f"hada_w{n}_b", shape).reshape(shape))
    return halves[0] * halves[1]


def _lokr(group: Group, shape: tuple[int, ...]) -> torch.Tensor:
    g = group.factors

    def half(n: str, columns: int | None) -> tuple[str, tuple[int, ...]]:
        """First key and full shape of one Kronecker factor, from shapes alone."""
        if f"lokr_w{n}" in g:
            return f"lokr_w{n}", tuple(g[f"lokr_w{n}"].shape)
        a, b = g[f"lokr_w{n}_a"], g[f"lokr_w{n}_b"]
        fit(a.dim() == 2 and b.dim() >= 2, group, f"lokr_w{n}_a", shape)
        if columns is not None and f"lokr_t{n}" in g:
            return f"lokr_w{n}_a", (a.shape[1], b.shape[1], *shape[2:])
        return f"lokr_w{n}_a", (a.shape[0], *b.shape[1:])

    (key1, s1), (key2, s2) = half("1", None), half("2", 1)
    fit(len(s1) == 2 and s1[0] >= 1 and s1[1] >= 1, group, key1, shape)
    # Kronecker sizes multiply, so they are compared before anything of that size exists.
    fit(len(s2) >= 2 and s1[0] * s2[0] == shape[0] and s1[1] * prod(s2[1:]) == prod(shape[1:]), group, key2, shape)
    w1 = g["lokr_w1"] if "lokr_w1" in g else _matmul(group, "lokr_w1_a", "lokr_w1_b", s1)
    if "lokr_w2" in g:
        w2 = g["lokr_w2"]
    elif "lokr_t2" in g:
        w2 = _tucker(group, "lokr_t2", "lokr_w2_a", "lokr_w2_b", s2)
    else:
        w2 = _matmul(group, "lokr_w2_a", "lokr_w2_b", s2)
    return torch.kron(w1.contiguous(), w2.flatten(1).contiguous())


def _glora(group: Group, weight: torch.Tensor) -> torch.Tensor:
    """LyCORIS's: the weight itself through a low rank of its inputs, and a low rank beside it."""
    shape = tuple(weight.shape)
    a1, a2 = group.factors["a1"], group.factors["a2"]
    _refuse_old_glora(group, shape)
    fit(a1.dim() >= 2 and a1.shape[0] == shape[1] and a1.numel() == a1.shape[0] * a1.shape[1], group, "a1", shape)
    fit(a2.dim() >= 2 and a2.shape[0] == a1.shape[1] and a2.numel() == a2.shape[0] * shape[1], group, "a2", shape)
    through = torch.einsum("oi...,ir,rj->oj...", weight, a1.flatten(1), a2.flatten(1))
    return through + _matmul(group, "b1", "b2", shape).reshape(shape)


def _refuse_old_glora(group: Group, shape: tuple[int, ...]) -> None:
    """Raise NotTestableError for factors in the order of LyCORIS before 3, also where those of today have the same shapes.

    Its training scaled the product by (alpha / rank)^2, its own merge not at all, ComfyUI by alpha / rank: no number is right.
    """
    rank, old = group.factors["a1"].shape[:1], {"a1": shape[1:2], "b1": shape[1:2], "a2": shape[1:2], "b2": shape[:1]}
    if all(
        tuple(group.factors[role].shape[:2]) == ((*rank, *side) if role.endswith("1") else (*side, *rank))
        and group.factors[role].shape[2:].numel() == 1
        for role, side in old.items()
    ):
        raise NotTestableError(
            f"the file {NOT_READ}: GLoRA as LyCORIS wrote it before version 3 (first key {short(group.keys['a1'])}), which tools "
            "scale differently. Ask for the merged model"
        )


def _path(group: Group, letter: str, shape: tuple[int, ...]) -> torch.Tensor | float:
    """One of GLoRA's five paths in peft's form: low rank, a vector or a number, in a shape that `shape` broadcasts."""
    low, plain = f"glora_{letter}.Xd", next((k for k in group.factors if k.startswith(f"glora_{letter}.")), None)
    if low in group.factors:
        return _matmul(group, low, f"glora_{letter}.Xu", shape)
    if plain is None:
        return 0.0
    value = group.factors[plain]
    spread = value.dim() <= len(shape) and all(
        mine in (1, full) for mine, full in zip(value.shape[::-1], shape[::-1], strict=False)
    )
    fit(spread, group, plain, shape)
    return value


def _vera(group: Group, weight: torch.Tensor) -> torch.Tensor:
    rows, columns = weight.shape
    b, d = group.factors["vera_lambda_b"], group.factors["vera_lambda_d"]
    left, right = group.factors["vera_B"], group.factors["vera_A"]
    fit(b.shape == (rows,), group, "vera_lambda_b", weight.shape)
    fit(left.dim() == 2 and left.shape[0] >= rows and d.shape == left.shape[1:], group, "vera_B", weight.shape)
    fit(right.dim() == 2 and right.shape[1] >= columns and d.shape == right.shape[:1], group, "vera_A", weight.shape)
    return (b[:, None] * left[:rows]) @ (d[:, None] * right[:, :columns])


def rank_of(group: Group) -> int | None:
    """Rank as the factors show it; None for full differences and full LoKr."""
    order = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "a2")
    return next((int(group.factors[k].shape[0]) for k in order if k in group.factors and group.factors[k].dim()), None)


def scaling_of(group: Group, scaling: Scaling | None) -> float:
    """What the low-rank product is multiplied with before the user's scale.

    An `.alpha` in the file wins over a config, as it belongs to the very module. kohya reads alpha 0 as "equal to rank",
    and LyCORIS ignores alpha where both Kronecker factors are stored in full.
    """
    if "alpha" in group.factors and group.factors["alpha"].numel() != 1:
        raise SuspectError(f"{short(group.keys['alpha'])} holds {group.factors['alpha'].numel()} numbers, expected 1")
    if group.algorithm not in SCALED:
        return 1.0
    rank = rank_of(group)
    if rank == 0:
        raise SuspectError(f"{short(next(iter(group.keys.values())))} has rank 0")
    if "alpha" in group.factors:
        alpha = float(group.factors["alpha"])
        if rank is None or (alpha == 0 and group.layout == "kohya"):
            return 1.0
        return alpha / rank
    # GLoRA's form in peft has neither a rank for all of it nor an alpha.
    return 1.0 if scaling is None or group.algorithm == "glora" else scaling.of(group.module, rank)


def product_of(group: Group, shape: tuple[int, ...]) -> torch.Tensor:
    """What the factors of a LoRA, LoHa or LoKr multiply to, before any scale; `shape` is the weight's, `(out, in, *kernel)`.

    Raises:
        WrongBaseError: a factor does not fit.
    """
    return {"lora": _lora, "loha": _loha, "lokr": _lokr}[group.algorithm](group, shape).reshape(shape)


def new_weight(
    group: Group, weight: torch.Tensor, factor: float, scale: float, cayley: Cayley | None = None
) -> torch.Tensor:
    """The module's weight under the adapter, in `weight`'s dtype-safe precision (float32 or wider).

    Args:
        group: factors, already in the precision of `weight`.
        weight: current weight, shape `(out, in, *kernel)` or `(C,)` for norms, float32 or float64.
        factor: `scaling_of(group)`. scale: the user's multiplier, 1 as trained. cayley: of peft's OFT, from its config.
    DoRA, with V = W + factor·delta and norms per output row (per input column where `dora_scale` has that shape):
    peft's `lora_magnitude_vector` takes the scale inside, m·(W + scale·factor·delta) / norm of the same; kohya's
    `dora_scale` blends, W + scale·(m·V / |V| - W). Both agree at scale 1.
    Raises:
        WrongBaseError: a factor does not fit `weight`'s shape. SuspectError, NotTestableError: as `turn`.
    """
    shape = tuple(weight.shape)
    if group.algorithm in ("diff", "ln_tuning"):
        role = "diff" if group.algorithm == "diff" else "new"
        fit(tuple(group.factors[role].shape) == shape, group, role, shape)
        return weight + scale * (group.factors[role] - (weight if role == "new" else 0))
    first = next(role for role in group.factors if role not in MODIFIERS)
    fit(len(shape) >= 2, group, first, shape)
    if group.algorithm in ("oft", "boft"):
        return turn(group, weight, scale, cayley)
    if "a1" in group.factors:
        return weight + scale * factor * _glora(group, weight)
    if group.algorithm in ("glora", "vera"):
        fit(len(shape) == 2, group, first, shape)
        if group.algorithm == "vera":
            return weight + scale * _vera(group, weight)
        return weight + scale * (weight * _path(group, "A", shape) + _path(group, "B", shape))
    delta = factor * product_of(group, shape)
    if "magnitude" in group.factors:
        return _decompose(weight + scale * delta, group, "magnitude")
    if "dora_scale" in group.factors:
        return weight + scale * (_decompose(weight + delta, group, "dora_scale") - weight)
    return weight + scale * delta


def new_bias(group: Group, bias: torch.Tensor, weight: torch.Tensor, factor: float, scale: float) -> torch.Tensor:
    """The module's bias under the adapter.

    Args:
        bias: shape `(out,)`. weight: the weight before the adapter, which GLoRA maps into the bias.
        factor, scale: as for `new_weight`.
    Raises:
        WrongBaseError: a factor does not fit.
    """
    shape = tuple(bias.shape)
    for role, strength in (("up_bias", factor * scale), ("diff_b", scale), ("new_b", scale)):
        if role in group.factors:
            fit(tuple(group.factors[role].shape) == shape, group, role, shape, "bias")
            bias = bias + strength * (group.factors[role] - (bias if role == "new_b" else 0))
    if "glora_A" in {role.partition(".")[0] for role in group.factors}:
        column = _path(group, "C", (weight.shape[1], 1))
        through = (weight * column.squeeze(-1)).sum(1) if isinstance(column, torch.Tensor) else 0.0
        bias = bias + scale * (bias * _path(group, "D", shape) + _path(group, "E", shape) + through)
    return bias


def _decompose(value: torch.Tensor, group: Group, role: str) -> torch.Tensor:
    magnitude, ones = group.factors[role], [1] * (value.dim() - 2)
    by_input = role == "dora_scale" and magnitude.dim() >= 2 and magnitude.shape[0] == 1 and value.shape[0] != 1
    axis = 1 if by_input else 0
    fit(magnitude.numel() == value.shape[axis], group, role, value.shape)
    norm = value.transpose(0, axis).flatten(1).norm(dim=1).clamp_min(torch.finfo(value.dtype).tiny)
    ratio = magnitude.flatten() / norm
    return value * (ratio.view(1, -1, *ones) if by_input else ratio.view(-1, 1, *ones))
