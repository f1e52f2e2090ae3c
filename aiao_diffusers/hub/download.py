"""Download a repository's suspect, and no more than it."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from ..errors import NotTestableError, SuspectError
from ..files.safetensors_header import MAX_TENSOR_BYTES
from ..files.text import short
from ..mark.record import BANK, DOCUMENT, FOLDER
from .candidates import STANDARD_ADAPTERS, Candidate, candidates, declared_base
from .remote import Remote, fetch, look_up


MAX_RECORD_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Download:
    """One suspect on disk. `root` is the snapshot, `path` what the loaders take; `base` is self-declared by `base_by`.

    `left` are paths of other candidates in the repository, on which the verdict says nothing.
    """

    remote: Remote
    candidate: Candidate
    root: Path
    path: Path
    base: str | None
    base_by: str | None
    left: tuple[str, ...] = ()


def record_files(remote: Remote) -> list[str]:
    """Paths of the watermark record in a repository; none where it is absent or larger than any record."""
    names = [f"{FOLDER}/{DOCUMENT}", f"{FOLDER}/{BANK}"]
    whole = all(n in remote.files and remote.files[n].size <= MAX_RECORD_BYTES for n in names)
    return names if whole else []


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
        SuspectError: no repository id, or several adapters and no `weight_name`. HubError: missing, private or gated,
        changed during the download. NotTestableError, UnsafeFileError: as `candidates`, or larger than `max_bytes`.
    """
    remote = look_up(repo_id, revision, api)
    found = candidates(remote, weight_name)
    loras = [c for c in found if c.kind == "lora"]
    standard = [c for c in found if c.kind == "folder" or c.path.endswith(STANDARD_ADAPTERS)]
    if len(found) > 1 and not standard and len(loras) != 1:
        names = ", ".join(c.path for c in found)
        raise SuspectError(f"{repo_id} holds several candidates: {names}. Say which one with weight_name=.")
    chosen = (standard or loras or found)[0]
    check_size(remote, chosen, max_bytes)
    base, by = declared_base(remote, chosen)
    root = fetch(remote, [*chosen.weights, *chosen.others, *record_files(remote)])
    left = tuple(c.path for c in found if c is not chosen)
    return Download(remote, chosen, root, root / chosen.path, base, by, left)


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
