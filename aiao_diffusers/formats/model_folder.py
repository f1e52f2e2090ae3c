"""A model folder before it is loaded: which files hold its weights, and whether its config is in bounds."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SuspectError, UnsafeFileError
from ..files.paths import inside, refuse_pickle
from ..files.safetensors_header import Header, read_header
from ..files.strict_json import read_json
from ..files.text import short


WEIGHTS = re.compile(
    r"diffusion_pytorch_model(?:\.(?P<variant>(?!safetensors)(?![\w-]*-\d{5}-of-\d{5})[\w-]+))?\.safetensors"
    r"(?P<index>\.index(?:\.(?P<sharded>[\w-]+))?\.json)?"
)
"""A whole file of weights, or the index of shards; each may be of a variant (`fp16`)."""


def class_of(config: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The class that a denoiser's config names, and words for the report where it names none that torch has.

    Flax and torch share their configs, and a config that names no class is judged by its fields; whether the weights fit,
    their names and shapes say afterwards.
    """
    name = config.get("_class_name")
    if name is None and isinstance(config.get("down_block_types"), list):
        by_fields = "UNet2DConditionModel" if "cross_attention_dim" in config else "UNet2DModel"
        return by_fields, (f"config.json names no class: read as {by_fields}, whose fields it has.",)
    if isinstance(name, str) and name.startswith("Flax"):
        plain = name.removeprefix("Flax")
        return plain, (f"config.json is of {short(name)}: the weights beside it were read as {short(plain)}.",)
    return name, ()


def fields_of(model_class: type) -> frozenset[str]:
    """Fields of a config that a model is built from; trainers note more in it, as the steps of an average."""
    return frozenset(inspect.signature(model_class.__init__).parameters)  # type: ignore[misc]


def check_config(value: Any, tensors: int, key: str = "", depth: int = 0) -> None:
    """Bound a config before a model is built from it: one entry may ask for 10^9 layers, which no file backs."""
    if depth > 6:
        raise UnsafeFileError("config.json is nested deeper than any model config")
    if isinstance(value, dict):
        for name, item in value.items():
            check_config(item, tensors, name, depth + 1)
    elif isinstance(value, list):
        if len(value) > max(tensors, 64):
            raise UnsafeFileError(f"config.json: {short(key)} lists {len(value)} entries for {tensors} tensors")
        for item in value:
            check_config(item, tensors, key, depth + 1)
    elif isinstance(value, int | float):
        limit = 2**22
        if re.search(r"layers|blocks|depth|stages", key):
            limit = max(tensors, 1)
        elif re.search(r"size|length", key):
            # Position tables grow with its square in memory that the meta device does not spare; published geometries of
            # some transformers are larger and are refused for now.
            limit = 2**12
        if abs(value) > limit:
            raise UnsafeFileError(f"config.json: {short(key)} is {short(value)}, at most {limit} fits this file")


def weights_order(match: re.Match[str]) -> tuple[bool, bool, str]:
    """Sorts matches of `WEIGHTS` as diffusers looks for them: plain ones before variants, whole files before shards."""
    return bool(match["variant"] or match["sharded"]), bool(match["index"]), match[0]


def read_weight_headers(folder: Path) -> tuple[Header, ...]:
    """Headers of a denoiser folder's weight files: the plain ones, whole or in shards, else those of its only variant.

    Raises:
        SuspectError: no weights, several variants and no plain file, or shards that are not as their index says.
        UnsafeFileError: pickles only, a hostile header or index, or a path trick.
    """
    names = sorted(p.name for p in folder.iterdir() if p.name.startswith("diffusion_pytorch_model"))
    found = [match for name in names if (match := WEIGHTS.fullmatch(name))]
    if found:
        variants = {match["variant"] or match["sharded"] for match in found}
        if None not in variants and len(variants) > 1:
            raise SuspectError(f"{folder} holds several variants {sorted(map(str, variants))} and no plain file")
        chosen = min(found, key=weights_order)
        path = inside(folder, chosen[0])
        return _read_shard_headers(folder, path) if chosen["index"] else (read_header(path),)
    for name in names:
        refuse_pickle(Path(name))
    raise SuspectError(f"{folder} holds no diffusion_pytorch_model safetensors file")


def _read_shard_headers(folder: Path, path: Path) -> tuple[Header, ...]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise UnsafeFileError(f"{path.name!r}: weight_map must map tensor names to file names")
    headers = []
    files = {name: inside(folder, name) for name in sorted(set(weight_map.values()))}
    for name, file in files.items():
        headers.append(read_header(file))
        held = headers[-1].tensors.keys()
        listed = {key for key, value in weight_map.items() if value == name}
        if held != listed:
            odd = min(held ^ listed)
            raise SuspectError(
                f"{path.name!r} and {name!r} disagree on {len(held ^ listed)} tensors, first {short(odd)}"
            )
    return tuple(headers)


def modern_attention(name: str) -> str:
    """Attention names of diffusers before 0.15, which its loader still renames."""
    name = re.sub(r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0.", name)
    return re.sub(r"(attentions\.\d+)\.(q|k|v)(uery|ey|alue)\.", r"\1.to_\2.", name)
