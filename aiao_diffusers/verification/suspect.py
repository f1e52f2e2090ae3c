"""Open what a verifier is given: a denoiser, a pipeline, a folder, a file or a Hub repository."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import nn

from ..denoiser.hashes import weights_sha256
from ..denoiser.setup import denoiser_of, running_values
from ..denoiser.sites import unwrap
from ..errors import AIAOError, HubError, NotTestableError, RecordError, SeveralSuspectsError, SuspectError
from ..files.paths import PICKLE_SUFFIXES
from ..files.text import short
from ..formats.artifact import Artifact, Bystander, effect_of
from ..formats.bystanders import CHANGES_A_DENOISER
from ..formats.checkpoint import load_denoiser
from ..formats.detect import detect
from ..formats.lora import apply_lora
from ..formats.model_folder import class_of
from ..hub.download import Download, pull, pull_own_denoiser, pull_record
from ..mark.record import WatermarkRecord, has_record
from .own_schedule import find_schedule


@dataclass(frozen=True)
class Suspect:
    """A denoiser ready to be read, and how it came about.

    Args:
        source (`dict`): `suspect` and `base`, where they came from a Hub: repository, commit, and who named the base.
        hashes (`dict`): of an adapter's file and of the base before the adapter went onto it.
        own_record (`bool`): the record is the suspect's own copy, which its publisher could have altered.
        also_present: what lies beside the weights that were read, and somebody would load.
        read (`str`): of an upload that holds more, where the weights lie that were read, for a warning.
        schedule (`dict`, *optional*): its pipeline's scheduler config, of an adapter that of its base.
        adapter_file: of an adapter, its file, which is read alone for its lineage too.
        alone (`bool`): an adapter without a base: `denoiser` is an empty module, and only the file can be read.
    """

    denoiser: nn.Module
    label: str
    base: str | None
    proves: str
    record: WatermarkRecord | None
    adapter: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str | None] = field(default_factory=dict)
    kind: str | None = None
    own_record: bool = False
    also_present: tuple[Bystander, ...] = ()
    read: str = ""
    schedule: Mapping[str, Any] | None = None
    adapter_file: Artifact | None = None
    alone: bool = False


def label_of(source: Any) -> str:
    """A short name for a report."""
    if isinstance(source, Suspect):
        return source.label
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def local_path(source: str | Path, *, token: str | bool | None = None) -> Path:
    """`source` as a local path; of a Hub repository the suspect's files are downloaded.

    Args:
        token: default: the one of `hf auth login` or HF_TOKEN.
    Raises:
        SuspectError: there is neither such a path nor a plausible repository id. HubError, UnsafeFileError,
        NotTestableError: as `pull`.
    """
    return _locate(source, None, None, HfApi(token=token)).path


def judge_source(
    source: str | Path, weight_name: str | None = None, revision: str | None = None
) -> tuple[Artifact, Path, dict[str, Any]]:
    """What a path or repository holds, as `open_suspect` takes it: its artifact, the file or folder that this lies in, and of a
    repository `repo` and `commit`.

    Raises:
        SuspectError, HubError, UnsafeFileError, NotTestableError: as `open_suspect`.
    """
    place = _locate(source, revision, weight_name)
    return place.judge(), place.root, place.origin("suspect").get("suspect", {})


def _repo_id(source: str | Path) -> str:
    """A source that is no path here as a repository id. What was typed as a path never asks the network."""
    text = str(source)
    named_as_file = Path(text).suffix.lower() in {".safetensors", ".gguf", ".json", *PICKLE_SUFFIXES}
    if text.count("/") != 1 or text.startswith((".", "/", "~")) or "\\" in text or named_as_file:
        raise SuspectError(f"no such folder or file: '{source}', and it is no repository id of the form 'user/name'.")
    return text


@dataclass(frozen=True)
class _Place:
    """Where a model lies: what the loaders take, the folder that may hold a record, and the download that it came by."""

    path: Path
    root: Path
    pulled: Download | None = None
    file: str | None = None  # within root, where one file was asked for

    def judge(self) -> Artifact:
        """What lies here. Of a download what else the repository holds, not what else happens to be in the cache."""
        found = detect(self.path) if self.file is None else detect(self.root, self.file)
        return found if self.pulled is None else replace(found, also_present=self.pulled.also_present)

    def origin(self, role: str) -> dict[str, Any]:
        """Where it came from, for the report; empty unless that is a Hub."""
        if self.pulled is None:
            return {}
        remote, file = self.pulled.remote, self.path.relative_to(self.root).as_posix()
        named = {"repo": remote.repo_id, "commit": remote.commit, "file": file}
        return {role: {**named, "from_cache_alone": remote.offline}}


def _locate(source: str | Path, revision: str | None, weight_name: str | None, api: HfApi | None = None) -> _Place:
    path = Path(source)
    if path.exists():
        return _Place(path, path, file=weight_name)
    try:
        return _download(_repo_id(source), revision, weight_name, api)
    except HubError as error:
        raise type(error)(f"{error} There is no such folder or file '{source}' on this machine either.") from error


def _download(
    repo_id: str, revision: str | None = None, weight_name: str | None = None, api: HfApi | None = None
) -> _Place:
    pulled = pull(repo_id, revision, weight_name, api=api)
    chosen = pulled.candidate
    file = chosen.path if chosen.kind == "folder" and chosen.path in pulled.remote.files else weight_name
    return _Place(pulled.path, pulled.root, pulled, file)


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
def open_suspect(
    suspect: Any,
    base: Any = None,
    *,
    weight_name: str | None = None,
    revision: str | None = None,
    record: WatermarkRecord | None = None,
    alone: bool = False,
) -> Iterator[Suspect]:
    """The suspect's denoiser; a LoRA is applied to `base` for the length of the block.

    Args:
        record: what the verifier reads with, where they have one; no other is then looked for.
        alone: an adapter's file is wanted without any base, even where it names one; a whole model is then not testable.
    Raises:
        SuspectError: nothing there, or a LoRA without a base and a record. NotTestableError: a file that changes no denoiser.
        HubError, UnsafeFileError: as `pull`.
    """
    if isinstance(suspect, Suspect):
        yield suspect
        return
    module = denoiser_of(suspect)
    if module is not None and alone:
        raise NotTestableError(_no_adapter(label_of(suspect)))
    if module is not None:
        read_with, own = _choose_record(record, None, False, suspect)
        schedule = find_schedule(suspect)
        yield Suspect(module, label_of(suspect), None, "descent", read_with, own_record=own, schedule=schedule)
        return
    place = _locate(suspect, revision, weight_name)
    found = place.judge()
    try:
        if found.several and found.kind in CHANGES_A_DENOISER:
            names = ", ".join(file.name for file in found.files)
            raise SeveralSuspectsError(f"{suspect} holds several candidates: {names}. Say which one with weight_name=")
        if base is None and not alone and (beside := _denoiser_beside(found, place)) is not None:
            around = "folder" if place.pulled is None else "repository"
            base, note = beside, f"no base was given: read on the denoiser of the {around} that holds the file."
            found = replace(found, warnings=(*found.warnings, note))
        whole = found.kind in ("pipeline", "denoiser", "single_file")
        if whole and alone:
            raise NotTestableError(_no_adapter(label_of(suspect)))
        if whole:
            yield _open_model(label_of(suspect), found, place, base, record)
            return
        if found.several and found.kind == "unknown":
            raise NotTestableError(f"'{suspect}' holds {found.detail}.")
        if found.kind != "lora":
            raise NotTestableError(f"'{suspect}' is {found.kind} ({found.detail}): {effect_of(found.kind)}.")
        if alone or (base is None and _find_declared(place, base)[0] is None):
            yield _open_alone(label_of(suspect), found, place, record)
            return
        with _open_adapter(label_of(suspect), found, place, base, record) as opened:
            yield opened
    except AIAOError as error:
        error.also_present = error.also_present or found.also_present
        raise


def _denoiser_beside(found: Artifact, place: _Place) -> nn.Module | None:
    """What a named adapter or bare file is used with, where no base is given: the denoiser of its own folder or repository.

    Of a repository that names another base for the file, that one is meant.
    """
    bare = found.config is None and found.kind in CHANGES_A_DENOISER
    if not bare or place.file is None or (place.pulled is not None and place.pulled.base is not None):
        return None
    try:
        own = detect(place.root) if place.pulled is None else pull_own_denoiser(place.pulled.remote)
    except HubError:
        raise
    except AIAOError:
        return None  # what holds the file has no denoiser that could stand in for base=
    if own is None or (isinstance(own, Artifact) and own.config is None):
        return None
    return load_denoiser(own, dtype=torch.float32)


def _open_model(label: str, found: Artifact, place: _Place, base: Any, record: WatermarkRecord | None) -> Suspect:
    """A whole denoiser. A folder brings its own config; a bare file borrows the base's."""
    declared, by = _find_declared(place, base)
    said = () if found.config is None else class_of(found.config)[1]
    warnings = (*found.warnings, *said)
    given = _open_base(base, declared) if base is not None or (declared and found.config is None) else None
    if given is None and found.config is None and found.kind != "pipeline":
        raise SuspectError(
            f"{_name_file(label, place)} holds weights without a config, and names no base: pass the model whose architecture "
            "they have as base= (or --base)."
        )
    denoiser = load_denoiser(found, base=given.denoiser if given else None, dtype=torch.float32)
    read_with, own = _choose_record(record, given, declared is None, place.root)
    if read_with is None and declared is not None:
        read_with = find_record(pull_record(declared))
        warnings += (f"the record is that of {declared}, the base named by the suspect's own {by}.",)
    return Suspect(
        denoiser,
        label,
        None,
        "descent",
        read_with,
        warnings=warnings,
        source=place.origin("suspect"),
        kind=found.kind,
        own_record=own,
        also_present=found.also_present,
        read=_where_read(found, place),
        schedule=find_schedule(place.root),
    )


@contextmanager
def _open_adapter(
    label: str, found: Artifact, place: _Place, base: Any, record: WatermarkRecord | None
) -> Iterator[Suspect]:
    """An adapter on its base, for the length of the block."""
    declared, by = _find_declared(place, base)
    warnings = found.warnings
    under = _open_base(base, declared)
    if declared is not None:
        under.source.setdefault("base", {})["declared_by"] = by
        warnings += (f"the base {declared} is self-declared by the suspect's {by}; nothing here proves it.",)
    base_sha256 = weights_sha256(running_values(unwrap(under.denoiser)))
    read_with, own = _choose_record(record, under, declared is None, place.root)
    with apply_lora(under.denoiser, found) as loaded:
        yield Suspect(
            under.denoiser,
            label,
            under.label,
            "carries",
            read_with,
            asdict(loaded),
            (*warnings, *loaded.warnings),
            {**place.origin("suspect"), **under.source},
            {"suspect": loaded.sha256, "base": base_sha256},
            found.kind,
            own,
            found.also_present,
            _where_read(found, place),
            under.schedule,
            found,
        )


def _open_alone(label: str, found: Artifact, place: _Place, record: WatermarkRecord | None) -> Suspect:
    """An adapter without a base: what its file alone shows can be read, where a record says by which architecture."""
    read_with, own = _choose_record(record, None, False, place.root)
    if read_with is None:
        raise SuspectError(
            f"{_name_file(label, place)} is a LoRA, which holds deltas alone, and names no base: pass the model it is used with "
            "as base= (or --base), or the record of a mark with a lineage carrier as record= (or --record)."
        )
    return Suspect(
        nn.Module(),
        label,
        None,
        "lineage",
        read_with,
        warnings=found.warnings,
        source=place.origin("suspect"),
        kind=found.kind,
        own_record=own,
        also_present=found.also_present,
        read=_where_read(found, place),
        adapter_file=found,
        alone=True,
    )


def _no_adapter(label: str) -> str:
    return f"'{label}' is a whole model: only an adapter's file answers on which model it was trained."


def _find_declared(place: _Place, base: Any) -> tuple[str | None, str | None]:
    """The base that a repository names for itself, and where, as far as the verifier gave none."""
    if place.pulled is None:
        return None, None
    return (place.pulled.base if base is None else None), place.pulled.base_by


def _where_read(found: Artifact, place: _Place) -> str:
    """Where the weights lie that were read, in words; "" where nothing lies beside them."""
    if not found.also_present:
        return ""
    if place.pulled is None:
        return str(found.path)
    return f"of {place.pulled.remote.repo_id} {place.pulled.candidate.path or 'the root'}"


def _name_file(label: str, place: _Place) -> str:
    """A suspect for an error, with the file that was named in it."""
    return f"'{label}'" if place.file is None else f"{short(place.file)} in '{label}'"


@dataclass(frozen=True)
class _Base:
    denoiser: nn.Module
    label: str
    record: WatermarkRecord | None
    source: dict[str, Any]
    schedule: Mapping[str, Any] | None = None


def _choose_record(
    given: WatermarkRecord | None, base: _Base | None, named: bool, suspect: Any
) -> tuple[WatermarkRecord | None, bool]:
    """What to read a suspect with, and whether it is the suspect's own copy, which its publisher could have altered.

    The verifier's record comes first, then that of the base if the verifier `named` it, and last that of a base which the suspect names.
    """
    beside = base.record if base is not None else None
    trusted = given or (beside if named else None)
    own = None if trusted else find_record(suspect)
    return trusted or own or beside, own is not None


def _open_base(base: Any, declared: str | None) -> _Base:
    """The model under a suspect: as the verifier gave it, else as the suspect names it.

    What a suspect names is a repository, never a folder that happens to lie on this machine.
    """
    module = denoiser_of(base) if base is not None else None
    if module is not None:
        # An adapter's names are looked up among those of the plain module.
        return _Base(unwrap(module), label_of(base), find_record(base), {}, find_schedule(base))
    place = _locate(base, None, None) if base is not None else _download(str(declared))
    denoiser = load_denoiser(place.path, dtype=torch.float32)
    record, schedule = find_record(place.root), find_schedule(place.root)
    return _Base(denoiser, str(base or declared), record, place.origin("base"), schedule)


def require_record(record: Any, found: WatermarkRecord | None) -> WatermarkRecord:
    """The record given by the verifier, else the one found beside the suspect."""
    chosen = found if record is None else find_record(record)
    if chosen is None:
        raise RecordError("no watermark record given or found beside the suspect: pass record=FOLDER (or --record).")
    return chosen
