"""What becomes of an adapter after training, and whether the lineage reading outlives it."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ...lineage.reading import read_lineage
from ...mark.key import WatermarkKey
from .adapter_files import ADAPTERS
from .change import Change, Factors, State, save


Adapter = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module -> (down, up) of a plain LoRA, every scale in the factors."""
Change_ = Callable[[Adapter, nn.Module, torch.Generator], State]
CASTS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float8 (e4m3)": torch.float8_e4m3fn}


def load_adapter(file: Path) -> Adapter | None:
    """The factors of a kept file; None where it is no plain LoRA (DoRA, LoHa, LoKr)."""
    state = load_file(file)
    if not all(".lora_A." in name or ".lora_B." in name for name in state):
        return None
    return {
        name.removeprefix("unet.").removesuffix(".lora_A.weight"): (value, state[name.replace("lora_A", "lora_B")])
        for name, value in state.items()
        if ".lora_A." in name
    }


def as_state(adapter: Adapter) -> State:
    """Under diffusers' keys."""
    state: State = {}
    for module, (down, up) in adapter.items():
        state |= {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up}
    return state


def delta(factors: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The change that two factors make, as a matrix; a convolution's kernel lies in its columns."""
    return factors[1].flatten(1) @ factors[0].flatten(1)


def _low_rank(changes: Mapping[str, torch.Tensor], rank: int, like: Callable[[str], torch.Size]) -> State:
    """The nearest LoRA of `rank`, as extractors and resizers write it."""
    adapter: Adapter = {}
    for module, change in changes.items():
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        kept = min(rank, len(s))
        down, up = v[:kept] * s[:kept, None].sqrt(), u[:, :kept] * s[:kept].sqrt()
        kernel = like(module)[2:]
        adapter[module] = (
            down.reshape(kept, -1, *kernel),
            up.reshape(len(up), kept, *[1] * len(kernel)),
        )
    return as_state(adapter)


def _whole(changes: Mapping[str, torch.Tensor], like: Callable[[str], torch.Size]) -> State:
    """Full differences, as LyCORIS names them."""
    return {
        f"lora_unet_{module.replace('.', '_')}.diff": change.reshape(like(module))
        for module, change in changes.items()
    }


def shape_in(base: nn.Module) -> Callable[[str], torch.Size]:
    """The shape of a module's weight, by its name."""
    layers = {name.replace(".base_layer", ""): module for name, module in base.named_modules()}

    def shape(module: str) -> torch.Size:
        weight = layers[module].weight
        assert isinstance(weight, torch.Tensor)
        return weight.shape

    return shape


def _changes(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {module: delta(factors) for module, factors in adapter.items()}


def _cast(dtype: torch.dtype) -> Change_:
    def change(adapter: Adapter, base: nn.Module, generator: torch.Generator) -> State:
        return {name: value.to(dtype) for name, value in as_state(adapter).items()}

    return change


def _float8_scaled(adapter: Adapter, base: nn.Module, generator: torch.Generator) -> State:
    """Each factor at float8's largest value first: read as it stands, for no scale decides a row space."""
    return {name: (v / v.abs().max() * 448).to(torch.float8_e4m3fn) for name, v in as_state(adapter).items()}


def _resize(rank: int) -> Change_:
    return lambda adapter, base, generator: _low_rank(_changes(adapter), rank, shape_in(base))


def _extract(rank: int, dtype: torch.dtype) -> Change_:
    """Fuse into the base's weights in `dtype`, subtract the base, take the nearest low rank."""

    def change(adapter: Adapter, base: nn.Module, generator: torch.Generator) -> State:
        found = {}
        for module, made in _changes(adapter).items():
            weight = base.get_submodule(module).weight
            assert isinstance(weight, torch.Tensor)
            plain = weight.detach().flatten(1)
            found[module] = (plain + made).to(dtype).float() - plain.to(dtype).float()
        return _low_rank(found, rank, shape_in(base))

    return change


def _noise(size: float) -> Change_:
    def change(adapter: Adapter, base: nn.Module, generator: torch.Generator) -> State:
        found = {}
        for module, made in _changes(adapter).items():
            noise = torch.randn(made.shape, generator=generator)
            found[module] = made + size * made.square().mean().sqrt() * noise
        return _whole(found, shape_in(base))

    return change


def _prune(share: float) -> Change_:
    def change(adapter: Adapter, base: nn.Module, generator: torch.Generator) -> State:
        found = {}
        for module, made in _changes(adapter).items():
            least = made.abs().flatten().kthvalue(max(1, int(share * made.numel()))).values
            found[module] = made * (made.abs() > least)
        return _whole(found, shape_in(base))

    return change


def _keep_ranks(largest: bool) -> Change_:
    """Half of the rank components, by their size."""

    def change(adapter: Adapter, base: nn.Module, generator: torch.Generator) -> State:
        kept: Adapter = {}
        for module, (down, up) in adapter.items():
            sizes = down.flatten(1).norm(dim=1) * up.flatten(1).norm(dim=0)
            order = sizes.argsort(descending=largest)[: max(1, len(sizes) // 2)]
            kept[module] = (down[order], up[:, order])
        return as_state(kept)

    return change


def _scale(factor: float) -> Change_:
    return lambda adapter, base, generator: as_state({m: (d, u * factor) for m, (d, u) in adapter.items()})


TRANSFORMS: dict[str, Change_] = {
    "as trained": lambda adapter, base, generator: as_state(adapter),
    **{f"cast to {name}": _cast(dtype) for name, dtype in CASTS.items()},
    "cast to float8 (e4m3), scaled": _float8_scaled,
    "scaled by 0.1": _scale(0.1),
    "scaled by -1": _scale(-1.0),
    "resized to rank 4": _resize(4),
    "resized to rank 1": _resize(1),
    "fused in float32, extracted at rank 8": _extract(8, torch.float32),
    "fused in float16, extracted at rank 8": _extract(8, torch.float16),
    "half of the rank kept, the larger": _keep_ranks(True),
    "half of the rank kept, the smaller": _keep_ranks(False),
    "noise of the change's own size": _noise(1.0),
    "noise of twice its size": _noise(2.0),
    "the smallest 90% of the change set to zero": _prune(0.9),
}


@dataclass(frozen=True)
class Kept:
    """A kept file and what it is to be read with."""

    file: Path
    side: str
    key: WatermarkKey
    base: nn.Module


def measure_transforms(kept: Sequence[Kept], scratch: Path, progress: Callable[[], None]) -> list[dict[str, Any]]:
    """Each transform of each plain LoRA, read. A row a reading: `transform`, `side`, `log10_p`."""
    rows = []
    for number, one in enumerate(kept):
        adapter = load_adapter(one.file)
        if adapter is not None:
            for name, state in _transformed(adapter, one.base, number):
                rows.append({"transform": name, "side": one.side, "log10_p": _read(state, one, scratch)})
        progress()
    return rows


def _transformed(adapter: Adapter, base: nn.Module, seed: int) -> Iterator[tuple[str, State]]:
    for name, transform in TRANSFORMS.items():
        yield name, transform(adapter, base, torch.Generator().manual_seed(seed))


def measure_conversions(kept: Sequence[Kept], scratch: Path, progress: Callable[[], None]) -> list[dict[str, Any]]:
    """Each format that holds the same change, read. A row: `transform`, `side`, `log10_p`, and `plain`, that of diffusers' keys."""
    rows = []
    formats = [
        made for made in ADAPTERS if made.merge is None and not made.attention_only and made.weight_name is None
    ]
    for one in kept:
        adapter = load_adapter(one.file)
        if adapter is not None:
            plain = _read(as_state(adapter), one, scratch)
            factors: Factors = dict(adapter)
            for number, made in enumerate(formats):
                folder = scratch / f"{number}"
                folder.mkdir(exist_ok=True)
                found = read_lineage(made.write(Change(one.base, factors), folder), one.key, one.base)
                rows.append(
                    {"transform": made.name, "side": one.side, "log10_p": found.log10_p, "plain": plain}
                    | ({"reason": found.reason} if found.log10_p is None else {})
                )
        progress()
    return rows


def measure_merges(
    own: Sequence[Kept], others: Sequence[Kept], scratch: Path, progress: Callable[[], None]
) -> list[dict[str, Any]]:
    """Sums of one adapter with others, at equal weight.

    Args:
        own: adapters trained on carrying models. others: trained on the clean twin.
    Returns:
        rows: `transform`, `side` (`twin` where all are clean), `log10_p` under the key of the first.
    """
    rows = []
    for start, one in enumerate(own):
        clean = [others[(start + n) % len(others)] for n in range(5)]
        rival = next((x for x in [*own[start + 1 :], *own[:start]] if x.key.secret != one.key.secret), None)
        sister = next((x for x in [*own[start + 1 :], *own[:start]] if x.key.secret == one.key.secret), None)
        mixes: list[tuple[str, str, list[Kept]]] = [
            (f"summed with {n} clean", "carrier", [one, *clean[:n]]) for n in (1, 2, 3, 4)
        ]
        if rival is not None:
            mixes.append(("summed with one of another key", "carrier", [one, rival]))
            mixes.append(("summed with one of another key and 2 clean", "carrier", [one, rival, *clean[:2]]))
        if sister is not None:
            mixes.append(("summed with one of the same key and 2 clean", "carrier", [one, sister, *clean[:2]]))
        mixes += [(f"summed with {n} clean", "twin", clean[: n + 1]) for n in (1, 4)]
        for name, side, parts in mixes:
            state = _sum_of([load_adapter(part.file) for part in parts])
            if state is not None:
                rows.append({"transform": name, "side": side, "log10_p": _read(state, one, scratch)})
        progress()
    return rows


def _sum_of(parts: Sequence[Adapter | None]) -> State | None:
    """All factors side by side: the rank is the sum of ranks."""
    if any(part is None for part in parts):
        return None
    joined: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for part in parts:
        for module, factors in (part or {}).items():
            joined.setdefault(module, []).append(factors)
    weight = 1 / len(parts)
    return as_state(
        {
            module: (torch.cat([d for d, _ in found]), torch.cat([u * weight for _, u in found], 1))
            for module, found in joined.items()
        }
    )


def measure_extraction(
    models: Sequence[tuple[str, WatermarkKey, nn.Module, nn.Module]], scratch: Path, ranks: Sequence[int] = (8, 32)
) -> list[dict[str, Any]]:
    """LoRAs extracted from full fine-tunes.

    Args:
        models: side, key, the model before and after.
    """
    rows = []
    for side, key, before, after in models:
        old, new = dict(before.named_modules()), dict(after.named_modules())
        found = {
            name: (layer.weight - new[name].weight).neg().detach().flatten(1)
            for name, layer in old.items()
            if isinstance(layer, nn.Linear | nn.Conv2d) and re.search(r"to_|ff\.net|proj_", name)
        }
        for rank in ranks:
            state = _low_rank(found, rank, shape_in(before))
            kept = Kept(Path(), side, key, before)
            name = f"full fine-tune, extracted at rank {rank}"
            rows.append({"transform": name, "side": side, "log10_p": _read(state, kept, scratch)})
    return rows


def _read(state: State, kept: Kept, scratch: Path) -> float | None:
    """log10 p of what is written to a file; None where it is not testable."""
    file = save(scratch / "adapter.safetensors", state)
    return read_lineage(file, kept.key, kept.base).log10_p
