"""What lies beside the judged weights and somebody would load: named in every report, for a verdict says nothing of it."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from .artifact import Bystander
from .model_folder import SHARD, STEM, WeightSet, weight_sets


MAX_HEADERS = 64
"""Of files that may turn out to change no denoiser; a request each on a Hub."""
MAX_DEPTH, MAX_NAMES = 3, 20_000
PEFT_FILE = "adapter_model.safetensors"
"""peft's own name for an adapter, under which a file is read by the adapter_config.json beside it."""
STANDARD_ADAPTERS = (PEFT_FILE, "pytorch_lora_weights.safetensors")
CHANGES_A_DENOISER = ("lora", "denoiser", "single_file")
_PICKLES = (STEM, "pytorch_lora_weights", "adapter_model")
_WHY = {
    "lora": "an adapter, which was not applied",
    "denoiser": "a whole denoiser in one file",
    "single_file": "a whole model in one file, which from_single_file runs",
}
_WHY_ROOT = "weights at the root, which from_pretrained(FOLDER, subfolder=) runs in place of the subfolder's own"
_WHY_PART = "another denoiser of this pipeline, which runs beside the judged one"
_WHY_PICKLE = "a pickle, which older loaders run; pickles are never opened here"


def list_bystanders(
    names: Iterable[str],
    judged: Collection[str],
    is_denoiser: Callable[[str], bool],
    kind_of: Callable[[str], str | None],
    parts: Collection[str] = (),
) -> Iterator[Bystander]:
    """Files among `names` that somebody would load, each once; those of folders first, then single files.

    Args:
        names: paths of files below one folder or repository. judged: the weight files and the index that are judged.
        is_denoiser: whether the folder of this path ("" is the root) is a whole denoiser by its config.json.
        kind_of: what the file of this path is by its header; None where it cannot be told. Asked `MAX_HEADERS` times.
        parts: folders of the denoisers that the pipeline runs, as `pipeline_parts` names them.
    """
    folders: dict[str, list[str]] = {}
    for path in sorted(names):
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    singles: list[str] = []
    for folder, beside in folders.items():
        prefix = f"{folder}/" if folder else ""
        sets = weight_sets(beside)
        if "config.json" in beside and any(name.startswith(STEM) for name in beside):
            if not is_denoiser(folder):  # a VAE, a control network: their weights have the same names
                continue
            yield from _list_sets(
                folder, sets, [item for item in sets if prefix + item.name in judged], folder in parts
            )
            beside = [name for name in beside if not _belongs(name, sets)]
        singles += [path for name in beside if (path := prefix + name) not in judged]
    yield from _list_singles(singles, kind_of)
    for path in singles:
        stem, _, suffix = path.rpartition("/")[2].partition(".")
        if path.endswith(".ckpt") or (suffix.endswith(("bin", "bin.index.json")) and stem in _PICKLES):
            yield Bystander(path, "pickle", _WHY_PICKLE)


def _list_sets(folder: str, sets: list[WeightSet], judged: list[WeightSet], is_part: bool) -> Iterator[Bystander]:
    """The sets of weights of a denoiser's folder that are not judged; the first is the one that its loader runs."""
    for item in sets:
        if item in judged:
            continue
        if item.variant is not None:
            why = f"from_pretrained(variant={item.variant!r}) runs it"
        elif item is not sets[0]:
            why = f"a whole file beside the shards of {sets[0].name!r}, which from_pretrained runs"
        elif folder and is_part:
            why = _WHY_PART
        elif folder:
            why = f"weights of another folder, which from_pretrained(subfolder={folder!r}) runs"
        else:
            why = "weights at the root, which from_pretrained runs without a subfolder"
        yield Bystander(f"{folder}/{item.name}".lstrip("/"), "denoiser", why)


def _belongs(name: str, sets: list[WeightSet]) -> bool:
    """Whether a file is one of the sets, or a shard of theirs (also one that an earlier save left)."""
    shard = SHARD.fullmatch(name)
    if shard is None:
        return any(item.name == name for item in sets)
    return any(item.sharded and item.variant == (shard["variant"] or shard["legacy"]) for item in sets)


def _list_singles(paths: list[str], kind_of: Callable[[str], str | None]) -> Iterator[Bystander]:
    """Single files by their headers: what trainers write comes first, then the shortest name, before its checkpoints."""
    files = [path for path in paths if path.lower().endswith((".safetensors", ".gguf"))]
    files.sort(key=lambda path: (path not in STANDARD_ADAPTERS, "/" in path, len(path), path))
    for path in files[:MAX_HEADERS]:
        kind = kind_of(path)
        if kind in CHANGES_A_DENOISER:
            yield Bystander(path, kind, _WHY_ROOT if path == f"{STEM}.safetensors" else _WHY[kind])


def names_below(folder: Path) -> list[str]:
    """Paths of the files in a folder and three levels below it; links to folders are not followed, hidden ones left out."""
    names: list[str] = []
    for root, folders, files in os.walk(folder):
        inner = Path(root).relative_to(folder)
        deep = len(inner.parts) >= MAX_DEPTH
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))
        names += [(inner / name).as_posix() for name in sorted(files)]
        if len(names) > MAX_NAMES:
            break
    return names[:MAX_NAMES]
