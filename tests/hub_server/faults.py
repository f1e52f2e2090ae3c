"""What can go wrong on purpose: add a fault to `server.faults`, and requests that it matches go wrong.

    server.faults.add(RateLimit(retry_after=1, path="/resolve/", times=2))
    server.faults.add(Cut(probability=0.1, seed=7))

A probability is drawn from the seed, the request and how often that very request was seen, never from the order of
arrival: the same run fails in the same places whatever the threads do.
"""

import hashlib
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from .blobs import Blob


@dataclass(kw_only=True)
class Fault:
    """Which requests are hit. All conditions given must hold.

    Args:
        path: regular expression searched in the decoded path and query.
        method: HTTP method, any when None.
        host: "hub" (API, small files) or "cdn" (large files, uploads), both when None.
        probability: share of the matching requests, 0 to 1.
        seed: of that draw.
        skip: so many matching requests pass first, in order of arrival.
        times: so many are hit at most, in order of arrival.
    """

    path: str = ""
    method: str | None = None
    host: Literal["hub", "cdn"] | None = None
    probability: float = 1.0
    seed: int = 0
    skip: int = 0
    times: int | None = None
    hits: int = field(default=0, init=False)

    def matches(self, method: str, host: str, target: str) -> bool:
        return self.method in (None, method) and self.host in (None, host) and re.search(self.path, target) is not None


@dataclass(kw_only=True)
class RateLimit(Fault):
    """429 with `Retry-After` in seconds."""

    retry_after: int = 1


@dataclass(kw_only=True)
class ServerError(Fault):
    """A 5xx status; nothing else happens."""

    status: int = 500


@dataclass(kw_only=True)
class Cut(Fault):
    """The connection ends early.

    Args:
        side: "response": headers and `after_bytes` of the body arrive, never all of it; "silent": the request is
            carried out but no answer comes; "request": the upload is read up to `after_bytes`, nothing is done.
        after_bytes: half of the body when None.
        reset: end with RST instead of FIN; the client sees a network error instead of a protocol error.
    """

    side: Literal["response", "silent", "request"] = "response"
    after_bytes: int | None = None
    reset: bool = False


@dataclass(kw_only=True)
class Slow(Fault):
    """Bytes arrive at `bytes_per_second` after a `delay` in seconds."""

    bytes_per_second: float = 1e9
    delay: float = 0.0


@dataclass(kw_only=True)
class EndlessPages(Fault):
    """A paged listing never ends: every page links to a next one.

    Args:
        mode: "repeat" serves the last page again and again, "empty" serves empty pages, "fresh" invents new entries
            (for the list of models: ids that do not exist).
    """

    mode: Literal["repeat", "empty", "fresh"] = "repeat"


@dataclass
class Swap:
    """A file whose bytes change under the same revision, after `after` reads of it.

    Until then, and in its metadata unless `announce`, the file is what the commit says.
    """

    blob: Blob
    after: int = 0
    announce: bool = False
    reads: int = 0


class Faults:
    """The switchboard. Empty: the server behaves."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._swaps: dict[tuple[str, str], Swap] = {}
        self._seen: Counter[tuple[int, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """Switch on; the fault returned counts its `hits`."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()
            self._swaps.clear()
            self._seen.clear()

    def plan(self, method: str, host: str, target: str, range_header: str | None) -> list[Fault]:
        """The faults that this request meets, each counted."""
        with self._lock:
            return [
                f
                for index, f in enumerate(self._faults)
                if self._strikes(index, f, method, host, target, range_header)
            ]

    def _strikes(
        self, index: int, fault: Fault, method: str, host: str, target: str, range_header: str | None
    ) -> bool:
        if not fault.matches(method, host, target) or (fault.times is not None and fault.hits >= fault.times):
            return False
        self._seen[index, ""] += 1
        if self._seen[index, ""] <= fault.skip:
            return False
        request = f"{method} {host} {target} {range_header}"
        self._seen[index, request] += 1
        draw = hashlib.sha256(f"{fault.seed} {index} {request} {self._seen[index, request]}".encode()).digest()
        if int.from_bytes(draw[:8], "big") >= fault.probability * 2**64:
            return False
        fault.hits += 1
        return True

    def swap(self, repo_id: str, path: str, swap: Swap) -> Swap:
        with self._lock:
            self._swaps[repo_id, path] = swap
        return swap

    def swapped(self, repo_id: str, path: str, *, reading: bool) -> Blob | None:
        """The other bytes of a swapped file when their time has come. A read of the file's bytes counts."""
        with self._lock:
            swap = self._swaps.get((repo_id, path))
            if swap is None:
                return None
            due = swap.reads >= swap.after
            if reading:
                swap.reads += 1
                return swap.blob if due else None
            return swap.blob if due and swap.announce else None
