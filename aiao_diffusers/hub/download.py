"""Download a repository's suspect, and no more than it."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from ..errors import NotTestableError, SeveralSuspectsError
from ..files.safetensors_header import MAX_TENSOR_BYTES
from ..files.strict_json import MAX_JSON_BYTES
from ..files.text import short
from ..formats.artifact import Bystander
from ..formats.bystanders import STANDARD_ADAPTERS
from ..mark.record import BANK, COMPANIONS, DOCUMENT, FOLDER, MAX_COMPANION_BYTES
from .candidates import Candidate, Survey, declared_base, explain_refusal, judge_named, survey
from .remote import Remote, fetch, look_up


MAX_RECORD_BYTES = 512 * 2**20
SCHEDULE = "scheduler/scheduler_config.json"
"""Of a pipeline: the noise that its denoiser was trained on."""


@dataclass(frozen=True)
class Download:
    """One suspect on disk. `root` is the snapshot, `path` what the loaders take; `base` is self-declared by `base_by`.

    `also_present` is what else in the repository somebody would load, on which the verdict says nothing.
    """

    remote: Remote
    candidate: Candidate
    root: Path
    path: Path
    base: str | None
    base_by: str | None
    also_present: tuple[Bystander, ...] = ()


def record_files(remote: Remote) -> list[str]:
    """Paths of the watermark record in a repository, with what dates it; none where it is absent or larger than any record."""
    names = [f"{FOLDER}/{DOCUMENT}", f"{FOLDER}/{BANK}"]
    whole = all(n in remote.files and remote.files[n].size <= MAX_RECORD_BYTES for n in names)
    beside = [f"{FOLDER}/{name}" for name in COMPANIONS.values()]
    dating = [n for n in beside if n in remote.files and remote.files[n].size <= MAX_COMPANION_BYTES]
    return [*names, *dating] if whole else []


def pull(
    repo_id: str,
    revision: str | None = None,
    weight_name: str | None = None,
    *,
    api: HfApi | None = None,
    max_bytes: int = MAX_TENSOR_BYTES,
) -> Download:
    """One suspect of the Hub: its adapter or denoiser, its record where it has one, and the base it names.

    Args:
        weight_name: which file, where there are several. max_bytes: of all files together, default 128 GiB.
    Raises:
        SuspectError: no repository id. SeveralSuspectsError: several adapters and no `weight_name`. HubError: missing, private or
        gated, changed during the download. NotTestableError, UnsafeFileError: as `candidates`, or larger than `max_bytes`.
    """
    remote = look_up(repo_id, revision, api)
    beside: tuple[Bystander, ...] = ()
    if weight_name is not None:
        chosen = judge_named(remote, weight_name)
    else:
        seen = survey(remote)
        chosen = _choose(remote, seen)
        beside = tuple(item for item in seen.beside if item.path != chosen.path)
    check_size(remote, chosen, max_bytes)
    base, by = declared_base(remote, chosen)
    root = fetch(remote, [*chosen.weights, *chosen.others, *record_files(remote), *_schedule_files(remote)])
    return Download(remote, chosen, root, root / chosen.path, base, by, beside)


def _schedule_files(remote: Remote) -> list[str]:
    return [SCHEDULE] if SCHEDULE in remote.files and remote.files[SCHEDULE].size <= MAX_JSON_BYTES else []


def _choose(remote: Remote, seen: Survey) -> Candidate:
    """The candidate that is meant: the stock loader's choice, else the adapter of a standard name, else the only one."""
    if seen.refused is not None:
        seen.refused.also_present = seen.beside
        raise seen.refused
    if not seen.found:
        raise explain_refusal(remote, seen)
    if not seen.found[0].why:
        return seen.found[0]
    top = [c for c in seen.found if "/" not in c.path] or list(seen.found)
    loras = [c for c in top if c.kind == "lora"]
    standard = [c for c in loras if c.path.endswith(STANDARD_ADAPTERS)]
    rivals = [c for c in standard if "/" not in c.path]
    if len(rivals) > 1 or (len(top) > 1 and not standard and len(loras) != 1):
        names = ", ".join(c.path for c in rivals or top)
        error = SeveralSuspectsError(
            f"{remote.repo_id} holds several candidates: {names}. Say which one with weight_name=."
        )
        error.also_present = seen.beside
        raise error
    return (standard or loras or top)[0]


def pull_own_denoiser(remote: Remote) -> Path | None:
    """The denoiser that the stock loader runs of a repository, on disk; None where it runs none with a config.

    Raises:
        HubError: as `fetch`. NotTestableError, UnsafeFileError: as `pull`.
    """
    seen = survey(remote)
    if not seen.found or seen.found[0].kind != "folder" or seen.found[0].why:
        return None
    own = seen.found[0]
    check_size(remote, own, MAX_TENSOR_BYTES)
    return fetch(remote, [*own.weights, *own.others]) / own.path


def check_size(remote: Remote, candidate: Candidate, max_bytes: int) -> int:
    """Bytes of a candidate's weights; NotTestableError above `max_bytes`."""
    size = sum(remote.files[name].size for name in candidate.weights)
    if size > max_bytes:
        raise NotTestableError(
            f"{short(candidate.path)} in {remote.repo_id} has {size / 1e9:.1f} GB, more than the {max_bytes / 1e9:.1f} "
            "GB allowed here; it was not downloaded."
        )
    return size


def pull_record(repo_id: str, revision: str | None = None, api: HfApi | None = None) -> Path | None:
    """The folder of a repository's watermark record, without any weight; None where it has none."""
    remote = look_up(repo_id, revision, api)
    names = record_files(remote)
    return fetch(remote, names) if names else None
