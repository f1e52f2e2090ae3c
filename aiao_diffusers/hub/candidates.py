"""Fetch of a Hub repository only what a verdict needs, at one pinned commit: names, then headers, then weights.

`survey` reads headers by range requests and says which files could change a denoiser, the stock loader's choice first, by
the rules that also judge a folder on this machine; `pull` downloads the one meant and finds the base that it names for
itself. Nothing is unpickled, no code of a repository is imported.
"""

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..errors import AIAOError, NotTestableError, SuspectError, UnsafeFileError
from ..files.mistaken import START_BYTES, mistaken_for
from ..files.paths import PICKLE_SUFFIXES
from ..files.text import short
from ..formats.artifact import Artifact, Bystander, effect_of
from ..formats.bystanders import CHANGES_A_DENOISER, list_bystanders
from ..formats.detect import judge_header
from ..formats.model_folder import (
    DENOISER_FOLDERS,
    WEIGHTS,
    choose_weights,
    class_of,
    is_denoiser_name,
    pipeline_parts,
)
from ..formats.packing import QUANTO_MAP
from ..mark.record import FOLDER
from .remote import REPO_ID, Remote, read_remote, read_remote_header, read_remote_json, refuse_large_json


MAX_CANDIDATES = 8
MAX_NAMED = 32
"""Of what lies beside, so many are named; a repository of a thousand adapters is told as such."""
_OTHER_PART = re.compile(
    rf"(vae|text_encoder|safety_checker|image_encoder|feature_extractor|tokenizer|{FOLDER})(_\d)?/"
)


@dataclass(frozen=True)
class Candidate:
    """Files that together could change a denoiser.

    Args:
        kind: `folder` (a diffusers denoiser with its config), `lora`, `denoiser` or `single_file`.
        path: file or folder within the repository, as the loaders take it; "" is its root. Of a folder's weights that its
            loader does not run by itself (a variant) the file or index.
        artifact: what its headers say, read remotely; its files are paths within the repository.
        others: small files that go with them.
        why: who would load it; "" for the stock loader's own choice.
    """

    kind: str
    path: str
    artifact: Artifact
    others: tuple[str, ...] = ()
    why: str = ""

    @property
    def weights(self) -> tuple[str, ...]:
        """Paths of the weight files within the repository."""
        return tuple(file.as_posix() for file in self.artifact.files)


@dataclass(frozen=True)
class Survey:
    """What of a repository could change a denoiser.

    Args:
        found: best first, at most `MAX_CANDIDATES`. beside: all that was named but the first, pickles too.
        refused: why the choice of the stock loader is not among them. refusals: why others are not.
    """

    found: tuple[Candidate, ...]
    beside: tuple[Bystander, ...]
    refused: AIAOError | None
    refusals: tuple[AIAOError, ...]


def candidates(remote: Remote, weight_name: str | None = None) -> list[Candidate]:
    """What of a repository could change a denoiser, best first, at most `MAX_CANDIDATES`; only headers are read.

    Args:
        weight_name: path of the one adapter or checkpoint file meant.
    Raises:
        NotTestableError: nothing in it concerns a denoiser. UnsafeFileError: pickles only, a hostile header, path tricks.
        SuspectError: no file of that name. HubError.
    """
    if weight_name is not None:
        return [judge_named(remote, weight_name)]
    seen = survey(remote)
    if seen.found:
        return list(seen.found)
    raise explain_refusal(remote, seen)


def explain_refusal(remote: Remote, seen: Survey) -> AIAOError:
    """Why a repository has no candidate: a hostile file is the stronger reason; otherwise the first one found."""
    if seen.refused is not None:
        return seen.refused
    unsafe = (error for error in seen.refusals if isinstance(error, UnsafeFileError))
    return next(unsafe, None) or (seen.refusals[0] if seen.refusals else _explain_nothing(remote))


def judge_named(remote: Remote, name: str) -> Candidate:
    """The candidate that one file or index of the repository stands for.

    Raises:
        SuspectError: no such file. NotTestableError: it changes no denoiser. UnsafeFileError: a hostile header or index.
    """
    if name not in remote.files:
        raise SuspectError(f"{remote.repo_id} has no file {short(name)}.")
    folder, _, file = name.rpartition("/")
    if WEIGHTS.fullmatch(file) and _is_denoiser_folder(remote, folder):
        return _judge_folder(remote, folder, file, name)
    return _judge_file(remote, name)


def survey(remote: Remote) -> Survey:
    """Everything in a repository that somebody would load as a denoiser, the stock loader's choice first.

    Raises:
        HubError: the repository cannot be read. UnsafeFileError: its model_index.json is hostile.
    """
    found: list[Candidate] = []
    beside: list[Bystander] = []
    refusals: list[AIAOError] = []
    refused, judged = None, set[str]()
    try:
        choice = _choose(remote)
        if choice is not None:
            folder, name = choice
            judged.add(f"{folder}/{name}".lstrip("/"))
            found.append(_judge_folder(remote, folder, name, folder))
            judged.update(found[0].weights)
    except (NotTestableError, UnsafeFileError, SuspectError) as error:
        refused = error
    singles: dict[str, Candidate] = {}

    def kind_of(name: str) -> str | None:
        try:
            singles[name] = _judge_file(remote, name)
        except (NotTestableError, UnsafeFileError) as error:
            refusals.append(error)
            return None
        return singles[name].kind

    names = [name for name in remote.files if not _OTHER_PART.match(name)]
    is_denoiser = partial(_is_denoiser_folder, remote)
    for item in list_bystanders(names, judged, is_denoiser, kind_of, _parts_of(remote)):
        beside.append(item)
        if len(found) < MAX_CANDIDATES and item.kind != "pickle":
            try:
                found.append(replace(singles.get(item.path) or judge_named(remote, item.path), why=item.why))
            except (NotTestableError, UnsafeFileError, SuspectError) as error:
                refusals.append(error)
        if len(beside) == MAX_NAMED:
            break
    return Survey(tuple(found), tuple(beside), refused, tuple(refusals))


def _choose(remote: Remote) -> tuple[str, str] | None:
    """Folder and name of the weights that the stock loader runs; None where no folder is a denoiser's."""
    parts = ["", *DENOISER_FOLDERS]
    if "model_index.json" in remote.files:
        parts = _parts_of(remote)[:1] or [*DENOISER_FOLDERS, ""]
    for folder in parts:
        names = _names_in(remote, folder)
        if "config.json" in names and any(WEIGHTS.fullmatch(name) for name in names):
            return folder, choose_weights(names, f"{remote.repo_id}/{folder}".rstrip("/")).name
    return None


def _parts_of(remote: Remote) -> list[str]:
    """Folders of the denoisers that the pipeline runs by its model_index.json; none where there is no index."""
    if "model_index.json" not in remote.files:
        return []
    inner = {name.partition("/")[0] for name in remote.files if "/" in name}
    return pipeline_parts(read_remote_json(remote, "model_index.json"), inner)


def _names_in(remote: Remote, folder: str) -> set[str]:
    prefix = f"{folder}/" if folder else ""
    inside = (name.removeprefix(prefix) for name in remote.files if name.startswith(prefix))
    return {name for name in inside if "/" not in name}


def _is_denoiser_folder(remote: Remote, folder: str) -> bool:
    """By its name, or by its config.json, a small file that is fetched."""
    config = f"{folder}/config.json".lstrip("/")
    if config not in remote.files:
        return False
    if folder in ("", *DENOISER_FOLDERS):
        return True
    try:
        return is_denoiser_name(class_of(read_remote_json(remote, config))[0])
    except UnsafeFileError:
        return False


def _explain_nothing(remote: Remote) -> NotTestableError | UnsafeFileError:
    pickles = sorted(name for name in remote.files if Path(name).suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        return UnsafeFileError(
            f"{remote.repo_id} holds pickles only (first {short(pickles[0])}); they are never opened."
        )
    if remote.refused:
        return UnsafeFileError(
            f"{remote.repo_id} names a file {short(remote.refused[0])}, which leads out of its folder."
        )
    return NotTestableError(f"{remote.repo_id} holds no safetensors of an adapter or denoiser.")


def _artifact_of(remote: Remote, name: str) -> Artifact:
    """What one file of the repository is by its header. GGUF is told by its first bytes, and its header read after download."""
    if not name.lower().endswith(".gguf"):
        return judge_header(read_remote_header(remote, name))
    start = b"GGUF" if remote.offline else read_remote(remote, name, 0, START_BYTES)
    if remote.files[name].size < 24 or not start.startswith(b"GGUF"):
        what = mistaken_for(start) or "is named as GGUF and is none."
        raise UnsafeFileError(f"{short(name)} in {remote.repo_id} {what}")
    return Artifact("single_file", Path(name), (Path(name),), (), "GGUF")


def _judge_file(remote: Remote, name: str) -> Candidate:
    artifact = _artifact_of(remote, name)
    kind = artifact.kind
    if kind not in CHANGES_A_DENOISER:
        raise NotTestableError(f"{short(name)} in {remote.repo_id} is {kind} ({artifact.detail}): {effect_of(kind)}.")
    config = f"{name.rpartition('/')[0]}/adapter_config.json".lstrip("/")
    return Candidate(kind, name, artifact, (config,) if kind == "lora" and config in remote.files else ())


def _judge_folder(remote: Remote, folder: str, name: str, path: str) -> Candidate:
    """A diffusers denoiser in `folder` by its weights `name`, a whole file or an index."""
    prefix = f"{folder}/" if folder else ""
    weights: tuple[str, ...] = (f"{prefix}{name}",)
    # Where config.json says nothing of packed numbers, the map that optimum-quanto writes beside it does.
    others = tuple(f"{prefix}{n}" for n in ("config.json", QUANTO_MAP) if f"{prefix}{n}" in remote.files)
    for other in others:
        refuse_large_json(remote, other)
    if name.endswith(".json"):
        others = (*others, *weights)
        table = read_remote_json(remote, weights[0]).get("weight_map")
        names = set(table.values()) if isinstance(table, dict) else set()
        if not names or not all(isinstance(n, str) and "/" not in n and f"{prefix}{n}" in remote.files for n in names):
            raise UnsafeFileError(f"{weights[0]} in {remote.repo_id} names files that are not beside it.")
        weights = tuple(f"{prefix}{n}" for n in sorted(names))
    headers = tuple(read_remote_header(remote, name) for name in weights)
    artifact = Artifact("denoiser", Path(folder), tuple(header.path for header in headers), headers, "config.json")
    return Candidate("folder", path, artifact, others)


def declared_base(remote: Remote, candidate: Candidate | None = None) -> tuple[str | None, str | None]:
    """The base that the repository names for itself, and where: adapter config, then card or tag.

    Only a repository id counts: a path in a stranger's config must not open a folder of this machine.
    """
    for name in candidate.others if candidate else ():
        if name.endswith("adapter_config.json"):
            value = read_remote_json(remote, name).get("base_model_name_or_path")
            if isinstance(value, str) and REPO_ID.fullmatch(value):
                return value, "adapter_config.json"
    return remote.card_base, "model card" if remote.card_base else None
