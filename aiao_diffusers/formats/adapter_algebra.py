"""The algebra of adapters, where a new LoRA format or role of a key begins: keys -> factors by module -> a new weight.

LoRA (linear, conv, CP), LoHa, LoKr, full differences, and DoRA on top; which module a key names is for `module_names`. A key that gives a known module a role unknown
here is refused: the rest would be half an adapter, and half an adapter verifies as well as none.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Any

import torch
from torch import nn

from ..errors import LoraNotLoadedError, NotTestableError, SuspectError, WrongBaseError
from ..files.text import short
from .detect import TEXT_ENCODER_KEY
from .module_names import Part, locate, module_index, named_in


_ROLE = re.compile(
    r"(?P<name>.+?)(?:"
    r"[._]lora(?P<stream>[12]?)[._](?P<lora>A|B|up|down|mid)(?:\.[\w-]+)??\.(?P<part>weight|bias)"
    r"|\.lora_linear_layer\.(?P<linear>up|down)\.weight"
    r"|\.(?P<magnitude>lora_magnitude_vector)(?:\.[\w-]+)??(?:\.weight)?"
    r"|(?:[._]lora)?\.(?P<alpha>alpha)"
    r"|\.(?P<plain>dora_scale|diff|diff_b|w_norm|b_norm|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))"
    r")"
)
_ROLE_OF = {"A": "down", "B": "up", "up": "up", "down": "down", "mid": "mid", "w_norm": "diff", "b_norm": "diff_b"}
_COMPLETE: tuple[tuple[set[str], set[str]], ...] = (
    ({"down", "up"}, {"mid", "up_bias"}),
    ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, {"hada_t1", "hada_t2"}),
    ({"diff"}, {"diff_b"}),
    ({"diff_b"}, set()),
)
_LOKR_HALVES = (({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}), ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}))
_MODIFIERS = {"alpha", "magnitude", "dora_scale"}


@dataclass(frozen=True)
class Group:
    """The factors of one module by role (`down`, `up`, `hada_w1_a`, ...), and the file's layout they came in.

    Args:
        module: its name; an original name where that stands for several `parts`.
    """

    module: str
    layout: str
    factors: dict[str, torch.Tensor]
    keys: dict[str, str]
    parts: tuple[Part, ...] = ()

    @property
    def algorithm(self) -> str:
        """lora, loha, lokr or diff."""
        roles = self.factors.keys()
        if any(r.startswith("hada") for r in roles):
            return "loha"
        if any(r.startswith("lokr") for r in roles):
            return "lokr"
        return "lora" if "down" in roles or "up" in roles else "diff"


@dataclass(frozen=True)
class Parsed:
    """An adapter file sorted out: groups in file order, keys of no use here, and the number of text-encoder keys."""

    groups: list[Group]
    unused: list[str]
    text_encoder_keys: int


@dataclass(frozen=True)
class Scaling:
    """peft's rule for one adapter: alpha / r, or alpha / sqrt(r) with rsLoRA, with exceptions by module name."""

    r: int | None = None
    alpha: float | None = None
    rank_pattern: Mapping[str, Any] = field(default_factory=dict)
    alpha_pattern: Mapping[str, Any] = field(default_factory=dict)
    rslora: bool = False

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
    for pattern, value in patterns.items():
        # A regular expression from a stranger can take exponential time, so only literals and single wildcards run.
        parts = re.split(r"(\.\*|\\d\+|\[0-9\]\+)", pattern.removeprefix("^").removesuffix("$").replace(r"\.", "."))
        if any(re.search(r"[\\*+?\[\](){}|^$]", part) for part in parts[::2]) or len(parts) > 7:
            raise NotTestableError(f"pattern {short(pattern)} in the adapter config is too complex to follow safely")
        body = "".join(re.escape(p) if i % 2 == 0 else p for i, p in enumerate(parts))
        if re.fullmatch(("" if pattern.startswith("^") else r"(?:.*\.)?") + body, module):
            return value
    return default


# --- keys ---------------------------------------------------------------------------------------------------------


def parse(state: Mapping[str, torch.Tensor], denoiser: nn.Module) -> Parsed:
    """Sort the keys of an adapter file by module and role.

    Raises:
        SuspectError: a module's factors are incomplete, doubled or of two algorithms. LoraNotLoadedError: a key gives a
        module of this denoiser a role that is not defined here.
    """
    index = module_index(denoiser)
    groups: dict[str, Group] = {}
    unused: list[str] = []
    foreign: list[str] = []
    text_encoder = 0
    for key, tensor in state.items():
        if TEXT_ENCODER_KEY.match(key):
            text_encoder += 1
            continue
        match = _ROLE.fullmatch(key)
        target, layout = locate(match["name"] + (match["stream"] or ""), index) if match else (None, "")
        if match is None or target is None:
            (unused if named_in(key, index) is None else foreign).append(key)
            continue
        role = (
            _ROLE_OF.get(match["plain"], match["plain"])
            or match["alpha"]
            or ("magnitude" if match["magnitude"] else "")
        )
        if not role:
            role = _ROLE_OF[match["lora"] or match["linear"]]
            if match["part"] == "bias":
                role += "_bias"
        group = groups.setdefault(target.name, Group(target.name, layout, {}, {}, target.parts))
        if role in group.factors:
            raise SuspectError(f"{short(key)} and {short(group.keys[role])} both give {role} of one module")
        group.factors[role] = tensor
        group.keys[role] = key
    for group in groups.values():
        if group.factors.keys() <= _MODIFIERS:
            # A stray alpha scales nothing, as pruning tools leave it; a magnitude alone would still rescale its module.
            (unused if group.factors.keys() == {"alpha"} else foreign).extend(group.keys.values())
    if foreign:
        raise LoraNotLoadedError(
            f"{len(foreign)} of {len(state)} keys say of this denoiser's modules what is not defined here, first "
            f"{short(foreign[0])}: 0 modules would change by them, and without them the rest is another adapter. "
            f"Ask for the merged model"
        )
    whole = [group for group in groups.values() if group.factors.keys() != {"alpha"}]
    for group in whole:
        _check_complete(group)
    return Parsed(whole, unused, text_encoder)


def _check_complete(group: Group) -> None:
    roles = group.factors.keys() - _MODIFIERS
    whole = any(required <= roles <= required | optional for required, optional in _COMPLETE)
    if group.algorithm == "lokr":
        used = [next((half for half in halves if half <= roles), None) for halves in _LOKR_HALVES]
        whole = None not in used and roles - set().union(*(u or set() for u in used)) <= {"lokr_t2"}
    if not whole:
        first = next(iter(group.keys.values()))
        raise SuspectError(
            f"the adapter of {short(group.module)} is incomplete or mixed: it has {sorted(group.factors)} "
            f"(first key {short(first)}); the file is damaged or of an unknown kind"
        )


# --- algebra -------------------------------------------------------------------------------------------------------


def _fit(ok: bool, group: Group, role: str, shape: Iterable[int]) -> None:
    if not ok:
        raise WrongBaseError(
            f"{short(group.keys[role])} has shape {list(group.factors[role].shape)}, but {short(group.module)} of this "
            f"base has weight {list(shape)}"
        )


def _matmul(group: Group, left: str, right: str, shape: tuple[int, ...]) -> torch.Tensor:
    """`left @ right` flattened to matrices, for a weight of `shape`; checked before anything is multiplied."""
    a, b = group.factors[left], group.factors[right]
    _fit(a.dim() >= 2 and a.shape[0] == shape[0], group, left, shape)
    _fit(b.dim() >= 2 and prod(b.shape[1:]) == prod(shape[1:]), group, right, shape)
    _fit(prod(a.shape[1:]) == b.shape[0], group, left, shape)
    return a.flatten(1) @ b.flatten(1)


def _tucker(group: Group, core: str, left: str, right: str, shape: tuple[int, ...]) -> torch.Tensor:
    """CP form: core `(m, n, *kernel)`, left `(m, out)`, right `(n, in)` -> `(out, in, *kernel)`."""
    t, a, b = (group.factors[role] for role in (core, left, right))
    _fit(a.dim() >= 2 and prod(a.shape[1:]) == shape[0], group, left, shape)
    _fit(b.dim() >= 2 and prod(b.shape[1:]) == shape[1], group, right, shape)
    _fit(t.shape == (a.shape[0], b.shape[0], *shape[2:]), group, core, shape)
    return torch.einsum("mn...,mo,ni->oi...", t, a.flatten(1), b.flatten(1))


def _lora(group: Group, shape: tuple[int, ...]) -> torch.Tensor:
    if "mid" not in group.factors:
        return _matmul(group, "up", "down", shape)
    up = group.factors["up"]
    _fit(up.dim() >= 2, group, "up", shape)
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
        _fit(a.dim() == 2 and b.dim() >= 2, group, f"lokr_w{n}_a", shape)
        if columns is not None and f"lokr_t{n}" in g:
            return f"lokr_w{n}_a", (a.shape[1], b.shape[1], *shape[2:])
        return f"lokr_w{n}_a", (a.shape[0], *b.shape[1:])

    (key1, s1), (key2, s2) = half("1", None), half("2", 1)
    _fit(len(s1) == 2 and s1[0] >= 1 and s1[1] >= 1, group, key1, shape)
    # Kronecker sizes multiply, so they are compared before anything of that size exists.
    _fit(len(s2) >= 2 and s1[0] * s2[0] == shape[0] and s1[1] * prod(s2[1:]) == prod(shape[1:]), group, key2, shape)
    w1 = g["lokr_w1"] if "lokr_w1" in g else _matmul(group, "lokr_w1_a", "lokr_w1_b", s1)
    if "lokr_w2" in g:
        w2 = g["lokr_w2"]
    elif "lokr_t2" in g:
        w2 = _tucker(group, "lokr_t2", "lokr_w2_a", "lokr_w2_b", s2)
    else:
        w2 = _matmul(group, "lokr_w2_a", "lokr_w2_b", s2)
    return torch.kron(w1.contiguous(), w2.flatten(1).contiguous())


def rank_of(group: Group) -> int | None:
    """Rank as the factors show it; None for full differences and full LoKr."""
    order = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
    return next((int(group.factors[k].shape[0]) for k in order if k in group.factors and group.factors[k].dim()), None)


def scaling_of(group: Group, scaling: Scaling | None) -> float:
    """What the low-rank product is multiplied with before the user's scale.

    An `.alpha` in the file wins over a config, as it belongs to the very module. kohya reads alpha 0 as "equal to rank",
    and LyCORIS ignores alpha where both Kronecker factors are stored in full.
    """
    rank = rank_of(group)
    if rank == 0:
        raise SuspectError(f"{short(next(iter(group.keys.values())))} has rank 0")
    if group.algorithm == "diff":
        return 1.0
    if "alpha" in group.factors:
        if group.factors["alpha"].numel() != 1:
            raise SuspectError(
                f"{short(group.keys['alpha'])} holds {group.factors['alpha'].numel()} numbers, expected 1"
            )
        alpha = float(group.factors["alpha"])
        if rank is None or (alpha == 0 and group.layout == "kohya"):
            return 1.0
        return alpha / rank
    return 1.0 if scaling is None else scaling.of(group.module, rank)


def new_weight(group: Group, weight: torch.Tensor, factor: float, scale: float) -> torch.Tensor:
    """The module's weight under the adapter, in `weight`'s dtype-safe precision (float32 or wider).

    Args:
        group: factors, already in the precision of `weight`.
        weight: current weight, shape `(out, in, *kernel)` or `(C,)` for norms, float32 or float64.
        factor: `scaling_of(group)`. scale: the user's multiplier, 1 as trained.
    DoRA, with V = W + factor·delta and norms per output row (per input column where `dora_scale` has that shape):
    peft's `lora_magnitude_vector` takes the scale inside, m·(W + scale·factor·delta) / norm of the same; kohya's
    `dora_scale` blends, W + scale·(m·V / |V| - W). Both agree at scale 1.
    Raises:
        WrongBaseError: a factor does not fit `weight`'s shape.
    """
    shape = tuple(weight.shape)
    if group.algorithm == "diff":
        _fit(tuple(group.factors["diff"].shape) == shape, group, "diff", shape)
        return weight + scale * group.factors["diff"]
    make = {"lora": _lora, "loha": _loha, "lokr": _lokr}[group.algorithm]
    first = next(role for role in group.factors if role not in _MODIFIERS)
    _fit(len(shape) >= 2, group, first, shape)
    delta = factor * make(group, shape).reshape(shape)
    if "magnitude" in group.factors:
        return _decompose(weight + scale * delta, group, "magnitude")
    if "dora_scale" in group.factors:
        return weight + scale * (_decompose(weight + delta, group, "dora_scale") - weight)
    return weight + scale * delta


def _decompose(value: torch.Tensor, group: Group, role: str) -> torch.Tensor:
    magnitude, ones = group.factors[role], [1] * (value.dim() - 2)
    by_input = role == "dora_scale" and magnitude.dim() >= 2 and magnitude.shape[0] == 1 and value.shape[0] != 1
    axis = 1 if by_input else 0
    _fit(magnitude.numel() == value.shape[axis], group, role, value.shape)
    norm = value.transpose(0, axis).flatten(1).norm(dim=1).clamp_min(torch.finfo(value.dtype).tiny)
    ratio = magnitude.flatten() / norm
    return value * (ratio.view(1, -1, *ones) if by_input else ratio.view(-1, 1, *ones))
