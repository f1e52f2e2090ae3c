"""Everything about a repository that needs no denoiser: its commit, headers, hashes and weights, in threads ahead of the reading."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi

from ..errors import BudgetSpentError, NotTestableError
from ..hub.candidates import MAX_CANDIDATES, Candidate, candidates, declared_base
from ..hub.model_tree import Node
from ..hub.remote import Remote, fetch, look_up
from .judge import Judge, SuspectFiles
from .log import ScanLog, ScanRow
from .resident import check_fits, file_key


Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RepoFiles:
    """A repository with its suspects on disk; `rows` are those already decided, `known` says that the log has it."""

    node: Node
    commit: str | None = None
    remote: Remote | None = None
    suspects: tuple[SuspectFiles, ...] = ()
    rows: tuple[ScanRow, ...] = ()
    known: bool = False


class Budget:
    """Bytes that may still be downloaded; None: any number."""

    def __init__(self, gigabytes: float | None) -> None:
        self.left = None if gigabytes is None else gigabytes * 1e9
        self.gigabytes, self.spent, self._lock = gigabytes, 0, threading.Lock()

    def take(self, size: int) -> None:
        """Raises: BudgetSpentError."""
        with self._lock:
            if self.left is not None and self.spent + size > self.left:
                raise BudgetSpentError(
                    f"the download budget of {self.gigabytes:g} GB is spent (max_gb): raise it and resume."
                )
            self.spent += size


@dataclass(frozen=True)
class Downloader:
    """Looks repositories up, refuses what does not fit, and downloads the rest.

    Args:
        judge: knows the base and what was read already. log: knows what is settled. members: repositories of the model tree.
        budget: of all downloads. folder: for them. api: of the Hub.
    """

    judge: Judge
    log: ScanLog
    members: frozenset[str]
    budget: Budget
    folder: str
    api: HfApi

    def prepare(self, node: Node) -> RepoFiles:
        """One repository; whatever it does wrong becomes a row."""
        blank = ScanRow(node.repo_id, node.sha, "", node.relation, node.lineage, node.found_by, "not_testable")
        ready = RepoFiles(node, node.sha)
        try:
            remote = look_up(node.repo_id, node.sha, self.api, self.folder)
            ready = replace(ready, remote=remote, commit=remote.commit)
            blank = replace(blank, commit=remote.commit)
            if self.log.settled(node.repo_id, remote.commit):
                return replace(ready, known=True)
            found = candidates(remote)
        except Exception as error:  # whatever a repository does must not end the scan; the row says what it was
            return replace(ready, rows=(self.judge.refuse(blank, error),))
        suspects, rows = [], []
        total = sum(name.lower().endswith((".safetensors", ".gguf")) for name in remote.files)
        more = (f"only the first {MAX_CANDIDATES} candidates of {total} files were read",)
        for candidate in found:
            row = replace(blank, file=candidate.path, kind=candidate.kind)
            row = replace(row, warnings=more if len(found) == MAX_CANDIDATES < total else ())
            try:
                suspects.append(self._download(row, remote, candidate))
            except Exception as error:  # as above
                rows.append(self.judge.refuse(row, error))
        return replace(ready, suspects=tuple(suspects), rows=tuple(rows))

    def _download(self, row: ScanRow, remote: Remote, candidate: Candidate) -> SuspectFiles:
        """Check one candidate by its header, then download it, unless its hashes say that it is a copy.

        An adapter outside the tree is downloaded for its lineage alone; the base under it would say nothing.
        """
        size = sum(remote.files[name].size for name in candidate.weights)
        check_fits(candidate, self.judge.base, size)
        named, by = declared_base(remote, candidate)
        row = replace(row, declared_base=named, declared_by=by, file_key=file_key(remote, candidate))
        outside = None
        if candidate.kind == "lora" and not row.lineage and named not in self.members:
            # Any adapter of the right shapes leaves most of the mark in place, so without a declared link its verdict says
            # nothing about its author.
            outside = NotTestableError(
                f"an adapter {f'for {named}' if named else 'that names no base'}: its deltas alone show no descent. Verify it "
                "with base= where you know that it is used on your model."
            )
        elif candidate.kind == "lora" and not self.judge.question.reads_base:
            outside = NotTestableError(
                "the mark is a lineage carrier alone: on the base nothing is read of an adapter."
            )
        if outside is not None and not self.judge.question.asks_lineage:
            raise outside
        started = time.monotonic()
        if self.judge.knows(row, outside=outside is not None):
            return SuspectFiles(candidate, Path(), row, outside)
        self.budget.take(size)
        root = fetch(remote, [*candidate.weights, *candidate.others])
        row = replace(row, bytes=size, seconds={"download": time.monotonic() - started})
        return SuspectFiles(candidate, root, row, outside)


def run_ahead(jobs: Iterable[Job], work: Callable[[Job], Result], workers: int) -> Iterator[Result]:
    """`work(job)` of each job, in order of completion; at most two more than `workers` are ahead of the consumer."""
    source = iter(jobs)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="aiao-scan")
    waiting: set[Future[Result]] = set()
    try:
        while True:
            while len(waiting) < workers + 2 and (job := next(source, None)) is not None:
                waiting.add(pool.submit(work, job))
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            first = done.pop()
            waiting.remove(first)
            yield first.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
