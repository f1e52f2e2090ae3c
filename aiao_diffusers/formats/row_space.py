"""What an adapter file alone says of the inputs that it was trained on: the row space of each module's change.

An adapter's gradients are outer products with its layer's inputs, so the rows of its change are made of them. No base's
weights are needed; a blank model says which module a key names.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..denoiser.hashes import tensor_sha256
from ..errors import LoraNotLoadedError
from ..files.text import short
from .adapter_algebra import product_of
from .adapter_keys import Group, fit, parse
from .artifact import Artifact
from .lora import read_adapter


_PRODUCTS = ("lora", "loha", "lokr")


@dataclass(frozen=True)
class RowSpaces:
    """Rows of an adapter's changes by module.

    Args:
        rows: module -> `(k, in)`, float64, with `rows.T @ rows` the same as of the change, but for its scale; k is at most the
            rank or the outputs. A DoRA's is of its low-rank part, which is what was trained on inputs.
        unread: modules whose change the file alone does not give (OFT, VeRA, GLoRA, norms learned anew), or is zero, and why.
        sha256: of the file's tensors.
        warnings: what a report must say.
    """

    rows: dict[str, torch.Tensor]
    unread: dict[str, str]
    sha256: str
    warnings: tuple[str, ...]


@torch.no_grad()
def read_row_spaces(
    source: str | Path | Artifact, blank: nn.Module, modules: Collection[str], weight_name: str | None = None
) -> RowSpaces:
    """The rows of an adapter's changes to `modules`.

    Args:
        source: the adapter's file or folder. blank: a denoiser of the base's architecture; its values are not read, it may
            be on the meta device. modules: names of those asked for. weight_name: of a file in a folder.
    Raises:
        as `apply_lora`.
    """
    file = read_adapter(source, weight_name)
    layers = {name.replace(".base_layer", ""): layer for name, layer in blank.named_modules()}
    rows: dict[str, torch.Tensor] = {}
    unread: dict[str, str] = {}
    groups = parse(file.state, blank).groups
    if not groups:
        raise LoraNotLoadedError(
            f"none of the {len(file.state)} tensors of {file.path.name!r} names a module of {type(blank).__name__}, first "
            f"{short(next(iter(file.state), None))}: it is an adapter of another architecture."
        )
    for group in groups:
        asked = [part.module for part in group.parts if part.module in modules]
        if not asked:
            continue
        if group.algorithm not in (*_PRODUCTS, "diff") or group.factors.keys() == {"diff_b"}:
            unread |= dict.fromkeys(asked, f"its {group.algorithm} says nothing of inputs without the base's weights")
            continue
        start = 0
        counts = [layers[part.module].weight.shape[0] // part.pieces for part in group.parts]
        shape = (sum(counts), *layers[group.parts[0].module].weight.shape[1:])
        left, right = _factors(group, shape)
        for part, count in zip(group.parts, counts, strict=True):
            if part.module in asked:
                found = _compact(None if left is None else left[start : start + count], right, start, count)
                if bool(found.any()):
                    rows[part.module] = found
                else:
                    unread[part.module] = "its change is zero"
            start += count
    return RowSpaces(rows, unread, tensor_sha256(file.state), file.warnings)


def _factors(group: Group, shape: tuple[int, ...]) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Left and right factor of a plain LoRA, `(out, r)` and `(r, in)`; else None and the whole change, `(out, in)`."""
    ready = Group(group.module, group.layout, {k: _unit(v) for k, v in group.factors.items()}, group.keys, group.parts)
    if group.algorithm == "diff":
        whole = ready.factors["diff"]
        fit(tuple(whole.shape) == shape and len(shape) >= 2, group, "diff", shape)
        return None, whole.flatten(1)
    if group.algorithm == "lora" and "mid" not in group.factors:
        up, down = ready.factors["up"], ready.factors["down"]
        fit(up.dim() >= 2 and up.shape[0] == shape[0], group, "up", shape)
        fit(down.dim() >= 2 and down.shape[1:].numel() == torch.Size(shape[1:]).numel(), group, "down", shape)
        fit(up.shape[1:].numel() == down.shape[0], group, "up", shape)
        return up.flatten(1), down.flatten(1)
    return None, product_of(ready, shape).flatten(1)


def _unit(value: torch.Tensor) -> torch.Tensor:
    """A factor in float64 with its largest value at 1: no scale decides a row space, and products of tiny ones underflow."""
    # float8 knows no way to float64, and float32 does not hold what float64 does
    wide = value if value.dtype == torch.float64 else value.float().double()
    return wide / wide.abs().max() if bool(wide.any()) else wide


def _compact(left: torch.Tensor | None, right: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """Fewest rows with the Gram matrix of the change."""
    if left is None:
        return right[start : start + count]
    if left.shape[0] <= left.shape[1]:
        return left @ right
    return torch.linalg.qr(left, mode="r")[1] @ right
