"""Fetch of a Hub repository only what a verdict needs, at one pinned commit: names, then headers, then weights.

`candidates` reads headers by range requests and says which files could change a denoiser; `pull` downloads the one meant
and finds the base that it names for itself. Nothing is unpickled, no code of a repository is imported.
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import NotTestableError, SuspectError, UnsafeFileError
from ..files.paths import PICKLE_SUFFIXES
from ..files.text import short
from ..formats.artifact import Artifact
from ..formats.detect import DENOISER_FOLDERS, PEFT_FILE, judge_header
from ..formats.model_folder import WEIGHTS, weights_order
from ..mark.record import FOLDER
from .remote import REPO_ID, Remote, read_remote_header, read_remote_json


MAX_CANDIDATES = 8
MAX_HEADERS = 64  # of files that may turn out to be no candidates: a request each
STANDARD_ADAPTERS = (PEFT_FILE, "pytorch_lora_weights.safetensors")
_COMPONENTS = ("vae", "text_encoder", "safety_checker", "image_encoder", "feature_extractor", "tokenizer", FOLDER)


@dataclass(frozen=True)
class Candidate:
    """Files that together could change a denoiser.

    Args:
        kind: `folder` (a diffusers denoiser with its config), `lora`, `denoiser` or `single_file`.
        path: file or folder within the repository, as the loaders take it; "" is its root.
        artifact: what its headers say, read remotely; its files are paths within the repository.
        others: small files that go with them.
    """

    kind: str
    path: str
    artifact: Artifact
    others: tuple[str, ...] = ()

    @property
    def weights(self) -> tuple[str, ...]:
        """Paths of the weight files within the repository."""
        return tuple(file.as_posix() for file in self.artifact.files)


def candidates(remote: Remote, weight_name: str | None = None) -> list[Candidate]:
    """What of a repository could change a denoiser, best first, at most `MAX_CANDIDATES`; only headers are read.

    Args:
        weight_name: path of the one adapter or checkpoint file meant.
    Raises:
        NotTestableError: nothing in it concerns a denoiser. UnsafeFileError: pickles only, a hostile header, path tricks.
        SuspectError: no file of that name. HubError.
    """
    if weight_name is not None:
        if weight_name not in remote.files:
            raise SuspectError(f"{remote.repo_id} has no file {short(weight_name)}.")
        return [_judge_file(remote, weight_name)]
    folders = [f for prefix in (*DENOISER_FOLDERS, "") if (f := _judge_folder(remote, prefix)) is not None]
    taken = {name for found in folders for name in found.weights}
    tensors = [name for name in sorted(remote.files) if name.endswith(".safetensors") and name not in taken]
    names = [name for name in tensors if "/" not in name]
    if not names and not folders:
        names = [name for name in tensors if not name.startswith(_COMPONENTS)]
    # What trainers write comes first, then the shortest name: the final file beside its checkpoints.
    names.sort(key=lambda n: (n not in STANDARD_ADAPTERS, len(n), n))
    singles: list[Candidate] = []
    refusals: list[NotTestableError | UnsafeFileError] = []
    for name in names[:MAX_HEADERS]:
        if len(folders) + len(singles) >= MAX_CANDIDATES:
            break
        try:
            singles.append(_judge_file(remote, name))
        except (NotTestableError, UnsafeFileError) as error:
            refusals.append(error)
    found = [*folders, *singles][:MAX_CANDIDATES]
    if found:
        return found
    if refusals:
        # A hostile file is the stronger reason; otherwise the first one found.
        raise next((r for r in refusals if isinstance(r, UnsafeFileError)), refusals[0])
    raise _explain_nothing(remote)


def _explain_nothing(remote: Remote) -> NotTestableError | UnsafeFileError:
    suffixes = {Path(name).suffix.lower() for name in remote.files}
    pickles = sorted(name for name in remote.files if Path(name).suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        return UnsafeFileError(
            f"{remote.repo_id} holds pickles only (first {short(pickles[0])}); they are never opened."
        )
    if remote.refused:
        return UnsafeFileError(
            f"{remote.repo_id} names a file {short(remote.refused[0])}, which leads out of its folder."
        )
    if ".gguf" in suffixes:
        return NotTestableError(f"{remote.repo_id} is GGUF: convert it to safetensors, or pass the file to verify.")
    return NotTestableError(f"{remote.repo_id} holds no safetensors of an adapter or denoiser.")


def _judge_file(remote: Remote, name: str) -> Candidate:
    artifact = judge_header(read_remote_header(remote, name))
    kind = artifact.kind
    if kind not in ("lora", "denoiser", "single_file"):
        raise NotTestableError(
            f"{short(name)} in {remote.repo_id} is {kind} ({artifact.detail}): it does not change the denoiser."
        )
    config = f"{name.rpartition('/')[0]}/adapter_config.json".lstrip("/")
    return Candidate(kind, name, artifact, (config,) if kind == "lora" and config in remote.files else ())


def _judge_folder(remote: Remote, folder: str) -> Candidate | None:
    """A diffusers denoiser in `folder`; plain weights before those of a variant, a whole file before shards."""
    prefix = f"{folder}/" if folder else ""
    if f"{prefix}config.json" not in remote.files:
        return None
    beside = (name.removeprefix(prefix) for name in remote.files if name.startswith(prefix))
    found = [match for name in beside if (match := WEIGHTS.fullmatch(name))]
    if not found:
        return None
    chosen = min(found, key=weights_order)
    path = f"{prefix}{chosen[0]}"
    weights: tuple[str, ...] = (path,)
    others: tuple[str, ...] = (f"{prefix}config.json",)
    if chosen["index"]:
        others = (*others, path)
        table = read_remote_json(remote, path).get("weight_map")
        names = set(table.values()) if isinstance(table, dict) else set()
        if not names or not all(isinstance(n, str) and "/" not in n and f"{prefix}{n}" in remote.files for n in names):
            raise UnsafeFileError(f"{path} in {remote.repo_id} names files that are not beside it.")
        weights = tuple(f"{prefix}{n}" for n in sorted(names))
    headers = tuple(read_remote_header(remote, name) for name in weights)
    artifact = Artifact("denoiser", Path(folder), tuple(header.path for header in headers), headers, "config.json")
    return Candidate("folder", folder, artifact, others)


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
