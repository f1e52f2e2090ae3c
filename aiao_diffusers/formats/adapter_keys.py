"""An adapter file's keys, where a new role of a key begins: keys -> factors by module and role.

Which module a key names is for `module_names`, what the factors do to a weight for `adapter_algebra`. A key that gives a
known module a role unknown here is refused: the rest would be half an adapter, and half an adapter verifies as well as none.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import LoraNotLoadedError, NotTestableError, SuspectError, WrongBaseError
from ..files.text import short
from .detect import TEXT_ENCODER_KEY
from .module_names import Part, locate, module_index, named_in
from .unread_kinds import NOT_READ, find_unread_kind


_ROLE = re.compile(
    r"(?P<name>.+?)(?:"
    r"[._]lora(?P<stream>[12]?)[._](?P<lora>A|B|up|down|mid)(?:\.[\w-]+)??\.(?P<part>weight|bias)"
    r"|\.lora_linear_layer\.(?P<linear>up|down)\.weight"
    r"|\.(?P<magnitude>lora_magnitude_vector)(?:\.[\w-]+)??(?:\.weight)?"
    r"|(?:[._]lora)?\.(?P<alpha>alpha)"
    r"|\.(?P<plain>dora_scale|diff|diff_b|w_norm|b_norm|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)"
    r"|oft_blocks|rescale|boft_[Rs]|vera_lambda_[bd]|glora_[A-E]\.(?:X[du]?|zeros)|ln_tuning_layers\.(?:weight|bias))"
    r"|\.(?P<layer>oft_R|[ab][12])\.weight"
    r")"
)
_SHARED = re.compile(r"(?:.*\.)?(vera_[AB])")
"""Tensors of the whole adapter, which every module of it reads."""
_ROLE_OF = {
    "A": "down",
    "B": "up",
    "up": "up",
    "down": "down",
    "mid": "mid",
    "w_norm": "diff",
    "b_norm": "diff_b",
    "ln_tuning_layers.weight": "new",
    "ln_tuning_layers.bias": "new_b",
}
_ALGORITHMS = (
    ("hada_", "loha"),
    ("lokr_", "lokr"),
    ("oft_", "oft"),
    ("boft_", "boft"),
    ("a1", "glora"),
    ("b1", "glora"),
    ("glora_", "glora"),
    ("vera_", "vera"),
    ("new", "ln_tuning"),
    ("down", "lora"),
    ("up", "lora"),
)
"""The first whose role a group has; a group of none of them is a full difference."""
_VERA = {"vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B"}
_COMPLETE: tuple[tuple[set[str], set[str]], ...] = (
    ({"down", "up"}, {"mid", "up_bias", "diff_b"}),
    ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, {"hada_t1", "hada_t2", "diff_b"}),
    ({"diff"}, {"diff_b"}),
    ({"diff_b"}, set()),
    ({"oft_blocks"}, {"rescale", "diff_b"}),
    ({"oft_R"}, set()),
    ({"boft_R", "boft_s"}, set()),
    ({"a1", "a2", "b1", "b2"}, {"diff_b"}),
    (_VERA, set()),
    ({"new"}, {"new_b"}),
)
_HALVES: dict[str, tuple[tuple[tuple[set[str], ...], ...], set[str]]] = {
    "lokr": (
        (({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}), ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})),
        {"lokr_t2", "diff_b"},
    ),
    "glora": (
        tuple(
            ({f"glora_{x}.X"}, {f"glora_{x}.Xd", f"glora_{x}.Xu"}, {f"glora_{x}.zeros"}, *([set()] if x > "B" else []))
            for x in "ABCDE"
        ),
        set(),
    ),
}
"""Algorithms whose every part comes in one of several forms, and what may stand beside."""
MODIFIERS = {"alpha", "magnitude", "dora_scale"}
_NORMED = ("lora", "loha", "lokr")


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
        """lora, loha, lokr, oft, boft, glora, vera, ln_tuning or diff."""
        found = (name for start, name in _ALGORITHMS if any(role.startswith(start) for role in self.factors))
        name = next(found, "diff")
        # LyCORIS tells its butterfly by one more dimension.
        return "boft" if name == "oft" and self.factors.get("oft_blocks", torch.empty(0)).dim() == 4 else name


@dataclass(frozen=True)
class Parsed:
    """An adapter file sorted out: groups in file order, keys of no use here, and the number of text-encoder keys."""

    groups: list[Group]
    unused: list[str]
    text_encoder_keys: int


def parse(state: Mapping[str, torch.Tensor], denoiser: nn.Module) -> Parsed:
    """Sort the keys of an adapter file by module and role.

    Of a module that the denoiser has, every key is one of its factors, or the file is refused; only an alpha that scales
    nothing is left over.

    Raises:
        SuspectError: a module's factors are incomplete, doubled or of two algorithms. LoraNotLoadedError: a key gives a
        module of this denoiser a role that is not defined here. NotTestableError: a known kind that is not read here.
    """
    aimed = [key for key in state if not TEXT_ENCODER_KEY.match(key)]
    unread = find_unread_kind(aimed)
    if unread is not None:
        raise NotTestableError(f"the file {NOT_READ}: {unread}. Ask for the merged model")
    index = module_index(denoiser)
    groups: dict[str, Group] = {}
    unused: list[str] = []
    foreign: list[str] = []
    shared: dict[str, str] = {}
    for key in aimed:
        whole = _SHARED.fullmatch(key)
        if whole:
            shared[whole[1]] = key
            continue
        match = _ROLE.fullmatch(key)
        target, layout = locate(match["name"] + (match["stream"] or ""), index) if match else (None, "")
        if match is None or target is None:
            (unused if named_in(key, index) is None else foreign).append(key)
            continue
        group = groups.setdefault(target.name, Group(target.name, layout, {}, {}, target.parts))
        _add(group, _role_of(match), key, state[key])
    _share(groups.values(), {role: (key, state[key]) for role, key in shared.items()})
    for group in groups.values():
        if group.factors.keys() <= MODIFIERS:
            # A stray alpha scales nothing, as pruning tools leave it; a magnitude alone would still rescale its module.
            (unused if group.factors.keys() == {"alpha"} else foreign).extend(group.keys.values())
    if foreign:
        raise LoraNotLoadedError(
            f"{len(foreign)} of {len(state)} keys say of this denoiser's modules what is not defined here, first "
            f"{short(foreign[0])}: 0 modules would change by them, and without them the rest is another adapter. "
            f"Ask for the merged model"
        )
    found = [group for group in groups.values() if group.factors.keys() != {"alpha"}]
    for group in found:
        _check_complete(group)
    return Parsed(found, unused, len(state) - len(aimed))


def _role_of(match: re.Match[str]) -> str:
    """The role that a key's tail gives its tensor."""
    plain = match["plain"] or match["layer"]
    if plain:
        return _ROLE_OF.get(plain, plain)
    if match["alpha"] or match["magnitude"]:
        return "alpha" if match["alpha"] else "magnitude"
    return _ROLE_OF[match["lora"] or match["linear"]] + ("_bias" if match["part"] == "bias" else "")


def _add(group: Group, role: str, key: str, tensor: torch.Tensor) -> None:
    if role in group.factors:
        raise SuspectError(f"{short(key)} and {short(group.keys[role])} both give {role} of one module")
    group.factors[role] = tensor
    group.keys[role] = key


def _share(groups: Iterable[Group], shared: Mapping[str, tuple[str, torch.Tensor]]) -> None:
    """Give VeRA's modules the two projections that they have in common."""
    readers = [group for group in groups if group.algorithm == "vera"]
    if readers and len(shared) < 2:
        raise NotTestableError(
            "the file is a VeRA without its projections vera_A and vera_B, which it would draw anew from a seed: save it "
            "with save_projection=True, or ask for the merged model"
        )
    for group in readers:
        for role, (key, tensor) in shared.items():
            _add(group, role, key, tensor)


def _check_complete(group: Group) -> None:
    roles = group.factors.keys() - MODIFIERS
    whole = any(required <= roles <= required | optional for required, optional in _COMPLETE)
    if not whole and group.algorithm in _HALVES:
        parts, beside = _HALVES[group.algorithm]
        used = [next((form for form in forms if form <= roles), None) for forms in parts]
        whole = None not in used and roles - set().union(*(form or set() for form in used)) <= beside
    # A norm is learned for a low-rank product; on anything else it would be passed over.
    normed = {"magnitude", "dora_scale"} & group.factors.keys()
    if not whole or (normed and group.algorithm not in _NORMED):
        first = next(iter(group.keys.values()))
        raise SuspectError(
            f"the adapter of {short(group.module)} is incomplete or mixed: it has {sorted(group.factors)} "
            f"(first key {short(first)}); the file is damaged or of an unknown kind"
        )


def fit(ok: bool, group: Group, role: str, shape: Iterable[int], what: str = "weight") -> None:
    """WrongBaseError, naming the shape of a factor and of the module's weight or bias, unless `ok`."""
    if not ok:
        raise WrongBaseError(
            f"{short(group.keys[role])} has shape {list(group.factors[role].shape)}, but {short(group.module)} of this "
            f"base has {what} {list(shape)}"
        )
