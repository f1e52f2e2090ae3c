"""One repository of a Hub at one pinned commit: its files, ranges of their bytes, and checked downloads.

Every request goes through `retry`. No name of a repository leads out of its folder, and what arrives must be what the
commit says.
"""

import errno
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ..errors import HubError, HubUnreachableError, SuspectError, UnsafeFileError
from ..files.mistaken import START_BYTES
from ..files.safetensors_header import Header, header_length, parse_header
from ..files.strict_json import MAX_JSON_BYTES, parse_json
from ..files.text import short


REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
ATTEMPTS = 7
WAIT = 0.25
"""Seconds before the second attempt; each further one waits twice as long, at most `MAX_WAIT`. `Retry-After` wins."""
MAX_WAIT = 20.0
MAX_RETRY_AFTER = 900.0
TIMEOUT = 30.0
_GUESS = 64 * 2**10  # most headers of adapters and small denoisers fit, so that one request is enough
_TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[
    0
]  # the HTTP library's own base class, whose name changed between releases
T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """Size in bytes and the Hub's hashes: SHA-256 of a large file, git's SHA-1 of a small one."""

    size: int
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True)
class Remote:
    """A repository at one commit.

    Args:
        files: path in the repository to `RemoteFile`; names with path tricks are left out and kept in `refused`.
        card_base: the model that card or tag names as its base, self-declared. offline: the cache is all there is.
    """

    repo_id: str
    commit: str
    files: dict[str, RemoteFile]
    refused: tuple[str, ...] = ()
    card_base: str | None = None
    offline: bool = False
    cache: str | None = None
    api: HfApi = field(default_factory=HfApi, repr=False)


def retry(call: Callable[[], T], what: str, attempts: int = ATTEMPTS) -> T:
    """`call()`, again after 429, 5xx and broken connections; waits as long as `Retry-After` says, else ever longer.

    Raises:
        HubError: a refusal that no retry mends, with the fix. HubUnreachableError: no answer in so many attempts.
        OfflineModeIsEnabled: passed on.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except OfflineModeIsEnabled:
            raise
        except HFValidationError as error:
            raise SuspectError(f"{short(what)} is no repository id: {error}") from error
        except (OSError, _TRANSPORT) as error:
            response = next((r for e in _chain(error) if (r := getattr(e, "response", None)) is not None), None)
            status = getattr(response, "status_code", 0)
            if status and status not in (408, 425, 429) and status < 500:
                raise _refusal(_chain(error), what, status) from error
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise HubError(f"{what}: no space left on the disk; free some or set HF_HUB_CACHE.") from error
            asked = getattr(response, "headers", {}).get("Retry-After", "").strip()
            wait = float(asked) if asked.isdigit() else min(MAX_WAIT, WAIT * 2 ** (attempt - 1))
            if attempt == attempts or wait > MAX_RETRY_AFTER:
                raise HubUnreachableError(
                    f"{what}: no answer in {attempt} attempts ({short(str(error), 200)}); try again later."
                ) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and its causes: the client wraps a refused request into "not in the cache"."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _refusal(errors: Sequence[BaseException], what: str, status: int) -> HubError:
    def of(kind: type[BaseException]) -> bool:
        return any(isinstance(error, kind) for error in errors)

    if of(GatedRepoError):
        return HubError(f"{what} is gated: accept its terms on its page, then log in (`hf auth login`, or HF_TOKEN).")
    if of(RevisionNotFoundError):
        return HubError(f"{what}: no such revision; name a branch, a tag or a commit hash.")
    if of(RemoteEntryNotFoundError):
        return HubError(f"{what}: the file is not there.")
    if of(RepositoryNotFoundError) or status in (401, 403, 404):
        return HubError(
            f"{what} is missing or private: check the name, or log in with a token that may read it "
            f"(`hf auth login`, or HF_TOKEN)."
        )
    return HubError(f"{what}: the Hub refused with status {status} ({short(str(errors[0]), 200)}).")


def look_up(repo_id: str, revision: str | None = None, api: HfApi | None = None, cache: str | None = None) -> Remote:
    """The commit that `revision` (default: `main`) stands for, and its files; from the cache where the Hub is away.

    Raises:
        SuspectError: no repository id. HubError: missing, private, gated, no such revision. HubUnreachableError.
    """
    if not REPO_ID.fullmatch(repo_id):
        raise SuspectError(f"{short(repo_id)} is no repository id of the form 'user/name'.")
    api = api or HfApi()
    try:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        # Where the cache could answer, a Hub that is away is not waited for long.
        attempts = 3 if folder_of(repo_id, cache).is_dir() else ATTEMPTS
        info = retry(
            lambda: api.model_info(repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT), repo_id, attempts
        )
    except (OfflineModeIsEnabled, HubUnreachableError) as error:
        found = _find_cached(repo_id, revision, api, cache)
        if found is None:
            raise HubUnreachableError(f"{short(str(error), 300)} The cache lacks {repo_id}, too.") from error
        return found
    files, refused = {}, []
    for item in info.siblings or []:
        if _plain(item.rfilename):
            size = item.lfs.size if item.lfs else item.size
            files[item.rfilename] = RemoteFile(size or 0, item.lfs.sha256 if item.lfs else None, item.blob_id)
        else:
            refused.append(item.rfilename)
    if not info.sha:
        raise HubError(f"{repo_id}: the Hub names no commit, so nothing can be pinned.")
    _keep_ref(repo_id, revision, info.sha, cache)
    return Remote(repo_id, info.sha, files, tuple(refused), _card_base(info), False, cache, api)


def _plain(name: str) -> bool:
    """Whether a file's name stays in its folder on every system: no drive, no way up, nothing that a terminal would obey."""
    return name.isprintable() and not set(name) & {"\\", ":"} and not {"", ".", ".."} & set(name.split("/"))


def _card_base(info: Any) -> str | None:
    named = [tag.rpartition(":")[2] for tag in info.tags or [] if str(tag).startswith("base_model:")]
    card = getattr(info.card_data, "base_model", None) if info.card_data else None
    for name in (card if isinstance(card, list) else [card], named):
        for value in name:
            if isinstance(value, str) and REPO_ID.fullmatch(value):
                return value
    return None


def folder_of(repo_id: str, cache: str | None) -> Path:
    return Path(cache or constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"


def _keep_ref(repo_id: str, revision: str | None, commit: str, cache: str | None) -> None:
    """Downloads by commit hash leave no trace of the branch; with it, the cache answers for the branch offline too."""
    ref = folder_of(repo_id, cache) / "refs" / (revision or "main")
    if (revision or "main") != commit and _plain(revision or "main"):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


def _find_cached(repo_id: str, revision: str | None, api: HfApi, cache: str | None) -> Remote | None:
    folder, name = folder_of(repo_id, cache), revision or "main"
    ref = folder / "refs" / name
    commit = ref.read_text().strip() if _plain(name) and ref.is_file() else name
    snapshot = folder / "snapshots" / commit
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or not snapshot.is_dir():
        return None
    found = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if path.is_file()}
    files = {name: RemoteFile(path.stat().st_size) for name, path in found.items() if _plain(name)}
    return Remote(repo_id, commit, files, offline=True, cache=cache, api=api)


def read_remote(remote: Remote, name: str, start: int, length: int) -> bytes:
    """At most `length` bytes of a file from `start` on, by a range request; a server that sends more is cut off."""
    url = hf_hub_url(remote.repo_id, name, revision=remote.commit, endpoint=remote.api.endpoint)
    headers = {**build_hf_headers(token=remote.api.token), "Range": f"bytes={start}-{start + length - 1}"}
    headers["Accept-Encoding"] = "identity"

    def ask() -> bytes:
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
            if response.status_code != 206 and start:
                raise OSError("the server ignores range requests")
            got = bytearray()
            for chunk in response.iter_bytes():
                got += chunk
                if len(got) >= length:
                    break
        return bytes(got[:length])

    return retry(ask, f"{remote.repo_id}, {name}")


def read_remote_header(remote: Remote, name: str) -> Header:
    """A safetensors header, checked against the file's size; of 100 GB of weights only these bytes are fetched.

    Raises:
        UnsafeFileError: as `read_header`. HubError.
    """
    path, size = Path(name), remote.files[name].size
    if remote.offline:
        file = folder_of(remote.repo_id, remote.cache) / "snapshots" / remote.commit / name
        with file.open("rb") as handle:
            length = header_length(path, handle.read(START_BYTES), size)
            handle.seek(8)
            return parse_header(path, handle.read(length), size)
    start = read_remote(remote, name, 0, min(_GUESS, size)) if size else b""
    length = header_length(path, start, size)
    raw = start[8 : 8 + length]
    if len(raw) < length:
        raw += read_remote(remote, name, 8 + len(raw), length - len(raw))
    return parse_header(path, raw, size)


def refuse_large_json(remote: Remote, name: str) -> None:
    """Raise UnsafeFileError, before any download, for JSON larger than `MAX_JSON_BYTES`."""
    if remote.files[name].size > MAX_JSON_BYTES:
        raise UnsafeFileError(
            f"{name} in {remote.repo_id} has {remote.files[name].size} bytes: no config is that large."
        )


def read_remote_json(remote: Remote, name: str) -> dict[str, Any]:
    """A small JSON object of the repository, downloaded and checked.

    Raises:
        UnsafeFileError: larger than `MAX_JSON_BYTES`, or hostile.
    """
    refuse_large_json(remote, name)
    return parse_json((fetch(remote, [name]) / name).read_bytes(), name)


def fetch(remote: Remote, names: Sequence[str]) -> Path:
    """Download files into the Hub cache, at the pinned commit, and check them against the commit's hashes.

    Returns:
        The snapshot folder.
    Raises:
        HubError: the bytes are not those of the commit, twice in a row. HubUnreachableError: also where the Hub is away
        and a file is not in the cache.
    """
    root = folder_of(remote.repo_id, remote.cache) / "snapshots" / remote.commit
    for name in names:
        known = try_to_load_from_cache(remote.repo_id, name, remote.cache, remote.commit)
        if isinstance(known, str) and (remote.offline or _as_committed(Path(known), remote.files[name])):
            continue
        if remote.offline:
            raise HubUnreachableError(f"{remote.repo_id}: the Hub is away and {short(name)} is not in the cache.")
        for again in (False, True):
            path = retry(lambda n=name, a=again: _download(remote, n, a), f"{remote.repo_id}, {name}")  # type: ignore[misc]
            if _as_committed(path, remote.files[name]):
                break
        else:
            path.resolve().unlink(missing_ok=True)
            raise HubError(
                f"{remote.repo_id}: {short(name)} changed during the download; it is not commit {remote.commit[:8]}."
            )
    return root


def _download(remote: Remote, name: str, again: bool) -> Path:
    return Path(
        remote.api.hf_hub_download(
            remote.repo_id, name, revision=remote.commit, cache_dir=remote.cache, force_download=again
        )
    )


def _as_committed(path: Path, file: RemoteFile) -> bool:
    size = path.stat().st_size
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as handle:
        while chunk := handle.read(2**20):
            digest.update(chunk)
    return digest.hexdigest() == (file.sha256 or file.git_sha1 or digest.hexdigest())
