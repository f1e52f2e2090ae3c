"""Open what a verifier is given: a denoiser, a pipeline, a folder, a file or a Hub repository."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint import detect, load_denoiser
from .errors import NotTestableError, RecordError, SuspectError
from .lora import applied
from .record import WatermarkRecord, has_record


@dataclass(frozen=True)
class Opened:
    """A denoiser ready to be read, and how it came about."""

    denoiser: nn.Module
    label: str
    base: str | None
    proves: str
    record: WatermarkRecord | None
    adapter: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    kind: str | None = None


def label_of(source: Any) -> str:
    """A short name for a report."""
    return str(source) if isinstance(source, str | Path) else type(source).__name__


WANTED = ("*.json", "unet/*.safetensors", "transformer/*.safetensors", "*.safetensors", "aiao/*")


def local_path(source: str | Path, revision: str | None = None, patterns: tuple[str, ...] = WANTED) -> Path:
    """`source` as a local path; of a Hub repository the files that match `patterns` are downloaded first.

    Raises:
        SuspectError: there is neither such a path nor a plausible repository id.
    """
    path = Path(source)
    if path.exists():
        return path
    text = str(source)
    if text.count("/") != 1 or text.startswith((".", "/")) or path.suffix:
        raise SuspectError(f"no file or folder '{source}', and it is no repository id of the form 'user/name'.")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(text, revision=revision, allow_patterns=list(patterns)))


def denoiser_of(source: Any) -> nn.Module | None:
    """The denoiser of a pipeline or the module itself; None for a path."""
    for name in ("unet", "transformer"):
        part = getattr(source, name, None)
        if isinstance(part, nn.Module) and not isinstance(source, nn.Module):
            return part
    return source if isinstance(source, nn.Module) else None


def find_record(*sources: Any) -> WatermarkRecord | None:
    """The first record among pipelines and folders."""
    for source in sources:
        if isinstance(source, WatermarkRecord):
            return source
        if isinstance(source, str | Path) and Path(source).is_dir() and has_record(source):
            return WatermarkRecord.load(source)
        if isinstance(getattr(source, "record", None), WatermarkRecord):
            return source.record
    return None


@contextmanager
def opened(
    suspect: Any, base: Any = None, *, weight_name: str | None = None, revision: str | None = None
) -> Iterator[Opened]:
    """The suspect's denoiser; a LoRA is applied to `base` for the length of the block.

    Raises:
        SuspectError: nothing there, or a LoRA without a base. NotTestableError: a file that changes no denoiser.
    """
    module = denoiser_of(suspect)
    if module is not None:
        yield Opened(module, label_of(suspect), None, "descent", find_record(suspect))
        return
    path = local_path(suspect, revision)
    found = detect(path, weight_name)
    if found.kind in ("pipeline", "denoiser", "single_file"):
        given = denoiser_of(base) if base is not None else None
        if given is None and base is not None:
            given = load_denoiser(local_path(base), dtype=torch.float32)
        meant = path if weight_name is None else found.files[0]
        denoiser = load_denoiser(meant, base=given, dtype=torch.float32)
        record = find_record(path, base)
        yield Opened(denoiser, label_of(suspect), None, "descent", record, None, found.warnings, found.kind)
        return
    if found.kind != "lora":
        raise NotTestableError(f"'{suspect}' is {found.kind} ({found.detail}): it does not change the denoiser.")
    if base is None:
        raise SuspectError(
            f"'{suspect}' is a LoRA, which holds deltas alone: pass the model it is used with as base=."
        )
    denoiser = denoiser_of(base) or load_denoiser(local_path(base), dtype=torch.float32)
    with applied(denoiser, path, weight_name=weight_name) as loaded:
        record = find_record(path, base)
        adapter = asdict(loaded)
        warnings = (*found.warnings, *loaded.warnings)
        yield Opened(denoiser, label_of(suspect), label_of(base), "carries", record, adapter, warnings, found.kind)


def require_record(record: Any, found: WatermarkRecord | None) -> WatermarkRecord:
    """The record given by the verifier, else the one found beside the suspect."""
    chosen = found if record is None else find_record(record)
    if chosen is None:
        raise RecordError("no watermark record given or found beside the suspect: pass record=FOLDER (or --record).")
    return chosen
