"""A model folder before it is loaded: which files hold its weights, and whether its config is in bounds.

Which weights of a folder are judged is decided here alone, by names, for folders on this machine and on a Hub alike: those
that diffusers' `from_pretrained` runs. An index of shards comes before a whole file, plain weights before a variant.
"""

import inspect
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SeveralSuspectsError, SuspectError, UnsafeFileError
from ..files.paths import inside, refuse_pickle
from ..files.safetensors_header import Header, read_header
from ..files.strict_json import read_json
from ..files.text import short


DENOISER_FOLDERS = ("unet", "transformer", "transformer_2")
"""Where pipelines keep their denoisers, the one judged first: `denoiser.setup.SLOTS`, which would load diffusers to look at a folder."""
STEM = "diffusion_pytorch_model"
PICKLED = f"{STEM}.bin"
_VARIANT = r"(?!safetensors)(?![\w-]*-\d{5}-of-\d{5})[\w-]+"
WEIGHTS = re.compile(
    rf"{STEM}(?:\.(?P<variant>{_VARIANT}))?\.safetensors"
    r"(?P<index>(?:\.(?P<legacy>(?!index\.)[\w-]+))?\.index(?:\.(?P<sharded>[\w-]+))?\.json)?"
)
"""A whole file of weights, or the index of shards; each may be of a variant (`fp16`)."""
_DENOISER = re.compile(r"UNet|Transformer|DiT\w*Model$|UVit|UniDiffuserModel$")
SHARD = re.compile(rf"{STEM}(?:\.(?P<variant>[\w-]+?))?-\d{{5}}-of-\d{{5}}(?:\.(?P<legacy>[\w-]+))?\.safetensors")


@dataclass(frozen=True)
class WeightSet:
    """Weights of a denoiser's folder that a loader takes as one: a whole file, or the shards of an index.

    Args:
        name: of the file or index. variant: as `from_pretrained(variant=)` names it; None for the plain weights.
        rank: among those of its variant, the smallest is loaded.
    """

    name: str
    variant: str | None
    rank: int

    @property
    def sharded(self) -> bool:
        """Whether `name` is an index."""
        return self.name.endswith(".json")


def weight_sets(names: Iterable[str]) -> list[WeightSet]:
    """The sets of weights among the names of one folder, in the order in which diffusers looks for them."""
    found = []
    for match in filter(None, map(WEIGHTS.fullmatch, names)):
        variant = match["variant"] or match["legacy"] or match["sharded"]
        # An index in the manner of `model.fp16.safetensors.index.json` is one that diffusers never looks for.
        rank = (3 if match["variant"] else 1 if match["legacy"] else 0) if match["index"] else 2
        found.append(WeightSet(match[0], variant, rank))
    return sorted(found, key=lambda item: (item.variant or "", item.rank, item.name))


def choose_weights(names: Collection[str], where: str) -> WeightSet:
    """The weights that `from_pretrained` runs, by the names of a folder; those of its only variant where none are plain.

    Raises:
        SeveralSuspectsError: several variants and none plain. SuspectError: no weights. UnsafeFileError: a pickle is what would
        run, or all there is.
    """
    found = weight_sets(names)
    variants = [name for name in dict.fromkeys(item.variant for item in found) if name is not None]
    if found and found[0].variant is not None:
        if PICKLED in names:
            raise UnsafeFileError(
                f"in {where} diffusers runs the pickle {PICKLED!r}, which is never opened here; "
                f"weight_name={found[0].name!r} reads the variant {found[0].variant!r} beside it."
            )
        if len(variants) > 1:
            raise SeveralSuspectsError(
                f"{where} holds several variants {variants} and no plain file: say which one with weight_name="
            )
    if found:
        return found[0]
    for name in sorted(names):
        if name.startswith(STEM):
            refuse_pickle(Path(name))
    raise SuspectError(f"{where} holds no {STEM} safetensors file")


def is_denoiser_name(name: object) -> bool:
    """Whether a class of this name is a whole denoiser of diffusers, and no control network."""
    return isinstance(name, str) and "ControlNet" not in name and _DENOISER.search(name) is not None


def pipeline_parts(index: Mapping[str, Any], folders: Collection[str]) -> list[str]:
    """The folders from which a pipeline's loader takes its denoisers, by model_index.json; the first is the one judged.

    Args:
        folders: those that lie beside the index. What it names and is not among them, diffusers takes from the root: "".
    """

    def place(name: str) -> int:
        return DENOISER_FOLDERS.index(name) if name in DENOISER_FOLDERS else len(DENOISER_FOLDERS)

    values = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    named = sorted((name for name, value in values.items() if is_denoiser_name(value[1])), key=place)
    return [name if name in folders else "" for name in named]


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
    """Bound a config before a model is built from it: one entry may ask for 10^9 layers, which no file backs.

    Widths and tables of positions have no bound of their own here, for published ones differ by orders: `building` measures what
    all fields together ask for.
    """
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
        limit = 2**24
        if re.search(r"layers|blocks|depth|stages", key):
            limit = max(tensors, 1)
        elif key.startswith("sample_"):  # the side of what a pipeline draws, where it is not told another
            limit = 2**16
        elif "theta" in key:  # the base of a position's frequencies, which sizes nothing
            limit = 2**63
        if abs(value) > limit:
            raise UnsafeFileError(f"config.json: {short(key)} is {short(value)}, at most {limit} fits this file")


def names_in(folder: Path) -> set[str]:
    """Names of the files in a folder, links among them."""
    return {path.name for path in folder.iterdir() if not path.is_dir()}


def read_weight_headers(folder: Path, name: str | None = None) -> tuple[Header, ...]:
    """Headers of a denoiser folder's weight files.

    Args:
        name: the whole file or index that is meant; default: the one that `choose_weights` names.
    Raises:
        SuspectError: as `choose_weights`, or shards that are not as their index says. UnsafeFileError: as there, a hostile header
        or index, or a path trick.
    """
    name = choose_weights(names_in(folder), str(folder)).name if name is None else name
    path = inside(folder, name)
    return _read_shard_headers(folder, path) if name.endswith(".json") else (read_header(path),)


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
