"""Scan a Hub for who carries a mark: the model tree of a base, and whatever else the owner names.

Per repository: look up its commit, read headers, refuse what does not fit, name copies by hash, download the rest ahead of
verification, read the mark on the one resident denoiser, write a line to the log, drop the files. A repository that is
broken, hostile or out of reach becomes a `not_testable` row with its reason, and the scan goes on.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import HfApi

from ..errors import (
    AIAOError,
    ConfigError,
    HubError,
    KeyMismatchError,
    LoraNotLoadedError,
    NotTestableError,
    UnsafeFileError,
    WrongBaseError,
)
from ..formats.checkpoint import load_denoiser
from ..hub.candidates import MAX_CANDIDATES, Candidate, candidates, declared_base
from ..hub.download import pull
from ..hub.model_tree import LIMIT, RELATIONS, Node, walk
from ..hub.remote import Remote, fetch, folder_of, look_up
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from ..verification.suspect import find_record, require_record
from ..verification.verify import verify
from .log import ScanLog, ScanRow
from .report import ScanReport
from .resident import Resident, check_fits, file_key, place_on_base


LOG, DOWNLOADS = "scan.jsonl", ".aiao-downloads-"
_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (UnsafeFileError, "unsafe format"),
    (WrongBaseError, "other architecture"),
    (LoraNotLoadedError, "changes no denoiser of this kind"),
    (HubError, "out of reach"),
)
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass
class _Ready:
    """A repository with its suspects on disk; `rows` are those already decided."""

    node: Node
    commit: str | None = None
    remote: Remote | None = None
    suspects: tuple[tuple[Candidate, Path, ScanRow], ...] = ()
    rows: tuple[ScanRow, ...] = ()
    known: bool = False


class _Budget:
    """Bytes that may still be downloaded; None: any number."""

    def __init__(self, gigabytes: float | None) -> None:
        self.left = None if gigabytes is None else gigabytes * 1e9
        self.gigabytes, self.spent, self._lock = gigabytes, 0, threading.Lock()

    def take(self, size: int) -> None:
        """Raises: _BudgetSpent."""
        with self._lock:
            if self.left is not None and self.spent + size > self.left:
                raise _BudgetSpent(
                    f"the download budget of {self.gigabytes:g} GB is spent (max_gb): raise it and resume."
                )
            self.spent += size


class _BudgetSpent(NotTestableError):
    """A later run with a larger budget can decide this suspect."""


def scan(
    base_repo: str,
    key: WatermarkKey,
    *,
    output: str | Path = "aiao-scan",
    record: Any = None,
    repos: Sequence[str] = (),
    authors: Sequence[str] = (),
    search: Sequence[str] = (),
    relations: Sequence[str] = RELATIONS,
    since: str | date | None = None,
    alpha: float = 1e-6,
    trials: int = 8,
    seed: int = 0,
    workers: int = 4,
    max_gb: float | None = None,
    limit: int = LIMIT,
    api: HfApi | None = None,
    callback: Callable[[tuple[ScanRow, ...], int, int], None] | None = None,
) -> ScanReport:
    """Who of the descendants of `base_repo` carries the mark of `key`?

    Args:
        base_repo (`str`): repository of the marked model. key: its key.
        output (defaults to `aiao-scan`): folder of `scan.jsonl`, which a second call with the same arguments goes on from,
            and of `report.md`, `.html`, `.csv` and `.json`.
        record: a `WatermarkRecord` or a folder with it; default: the one in `base_repo`.
        repos, authors, search, relations, since, limit: which repositories, see `tree.walk`.
        alpha (`float`, defaults to 1e-6): chance of even one false `verified` in the whole scan.
        trials, seed: as in `verify`. workers (`int`, defaults to 4): downloads at a time.
        max_gb (`float`, *optional*): gigabytes downloaded at most; the rest is `not_testable` until resumed with more.
        callback: called after each repository with its rows, the number done and the number of all.
    Returns:
        `ScanReport`; its verdicts are corrected over the scan by Holm's adjustment.
    Raises:
        ConfigError: a number out of range. KeyMismatchError: the record is of another key. NotTestableError: the base does
        not read with this key, so no answer of the scan would mean anything. OutputExistsError: `output` holds another
        scan. HubError, RecordError: the base, its record or its tree cannot be read.
    Source: our choice.
    """
    if not 0 < alpha < 1 or trials < 1 or workers < 1 or (max_gb is not None and max_gb < 0):
        raise ConfigError(f"alpha={alpha}, trials={trials}, workers={workers} or max_gb={max_gb} is out of range.")
    started, folder, api = time.monotonic(), Path(output), api or HfApi()
    pulled = pull(base_repo, api=api)
    chosen = require_record(record, find_record(pulled.root))
    if not chosen.belongs_to(key):
        raise KeyMismatchError(f"the record of {base_repo} is of {chosen.owner!r} and commits to another key.")
    base = Resident(load_denoiser(pulled.path, dtype=torch.float32), f"{base_repo} at {pulled.remote.commit}")
    control = verify(base.denoiser, key, record=chosen, alpha=alpha, trials=trials, seed=seed)
    if not control.verified or control.log10_p is None:
        raise NotTestableError(f"{base_repo} itself does not verify with this key: a scan would tell nothing.")
    tree = walk(
        base_repo,
        repos=repos,
        authors=authors,
        search=search,
        relations=relations,
        since=since,
        limit=limit,
        api=api,
    )
    header = {"base": base_repo, "commit": pulled.remote.commit, "commitment": key.commitment, "alpha": alpha}
    log = ScanLog(folder / LOG, {**header, "trials": trials, "seed": seed, "scheme": chosen.scheme})
    for left in folder.glob(f"{DOWNLOADS}*"):  # by a run that was killed; nothing else in the folder is ours to remove
        shutil.rmtree(left, ignore_errors=True)
    downloads = tempfile.mkdtemp(dir=folder, prefix=DOWNLOADS)
    budget, members = _Budget(max_gb), {base_repo, *(n.repo_id for n in tree.nodes if n.lineage)}
    judge = _Judge(base, key, chosen, alpha / (MAX_CANDIDATES * max(1, len(tree.nodes))), trials, seed)
    own = ScanRow(base_repo, pulled.remote.commit, "", None, (), "base", control.verdict)
    judge.remember(
        replace(
            own,
            log10_p=control.log10_p,
            bit_accuracy=control.bit_accuracy,
            digest=base.sha256,
            file_key=file_key(pulled.remote, pulled.candidate),
        )
    )
    for row in log.rows():
        judge.remember(row)
    todo = [node for node in tree.nodes if not log.settled(node.repo_id, node.sha)]
    done = len(tree.nodes) - len(todo)

    def prepare(node: Node) -> _Ready:
        return _prepare(node, judge, log, members, budget, downloads, api)

    try:
        for ready in _ahead(todo, prepare, workers):
            done += 1
            if not ready.known:
                rows = (*ready.rows, *(judge(*suspect) for suspect in ready.suspects))
                log.write(ready.node.repo_id, ready.commit, rows)
                if callback is not None:
                    callback(rows, done, len(tree.nodes))
            if ready.remote is not None:
                shutil.rmtree(folder_of(ready.remote.repo_id, downloads), ignore_errors=True)
    finally:
        log.close()
        shutil.rmtree(downloads, ignore_errors=True)
    told = {"seconds": time.monotonic() - started, "downloaded": budget.spent, "repositories": len(tree.nodes)}
    report = ScanReport(
        base_repo,
        pulled.remote.commit,
        key.owner,
        key.commitment,
        alpha,
        control.log10_p,
        log.rows(),
        tree.warnings,
        told,
    )
    report.save(folder)
    return report


def _ahead(jobs: Iterable[Job], work: Callable[[Job], Result], workers: int) -> Iterator[Result]:
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


def _prepare(
    node: Node, judge: "_Judge", log: ScanLog, members: set[str], budget: _Budget, cache: str, api: HfApi
) -> _Ready:
    """Everything about a repository that needs no denoiser; runs ahead, in a thread."""
    blank = ScanRow(node.repo_id, node.sha, "", node.relation, node.lineage, node.found_by, "not_testable")
    ready = _Ready(node, node.sha)
    try:
        remote = look_up(node.repo_id, node.sha, api, cache)
        ready.remote, ready.commit = remote, remote.commit
        blank = replace(blank, commit=remote.commit)
        if log.settled(node.repo_id, remote.commit):
            return replace(ready, known=True)
        found = candidates(remote)
    except Exception as error:  # whatever a repository does must not end the scan; the row says what it was
        return replace(ready, rows=(_refused(blank, error),))
    suspects, rows = [], []
    total = sum(name.endswith(".safetensors") for name in remote.files)
    more = (f"only the first {MAX_CANDIDATES} candidates of {total} files were read",)
    for candidate in found:
        row = replace(blank, file=candidate.path, kind=candidate.kind)
        row = replace(row, warnings=more if len(found) == MAX_CANDIDATES < total else ())
        try:
            suspects.append(_suspect(row, remote, candidate, judge, members, budget))
        except Exception as error:  # as above
            rows.append(_refused(row, error))
    return replace(ready, suspects=tuple(suspects), rows=tuple(rows))


def _suspect(
    row: ScanRow, remote: Remote, candidate: Candidate, judge: "_Judge", members: set[str], budget: _Budget
) -> tuple[Candidate, Path, ScanRow]:
    """Check one candidate by its header, then download it, unless its hashes say that it is a copy."""
    check_fits(candidate, judge.base)
    named, by = declared_base(remote, candidate)
    row = replace(row, declared_base=named, declared_by=by, file_key=file_key(remote, candidate))
    if candidate.kind == "lora" and not row.lineage and named not in members:
        # Any adapter of the right shapes leaves most of the mark in place, so without a declared link its verdict says
        # nothing about its author.
        raise NotTestableError(
            f"an adapter {f'for {named}' if named else 'that names no base'}: its deltas alone show no descent. Verify it "
            "with base= where you know that it is used on your model."
        )
    started = time.monotonic()
    if judge.knows(row.file_key):
        return candidate, Path(), row
    size = sum(remote.files[name].size for name in candidate.weights)
    budget.take(size)
    root = fetch(remote, [*candidate.weights, *candidate.others])
    return candidate, root, replace(row, bytes=size, seconds={"download": time.monotonic() - started})


def _printable(text: str, limit: int = 400) -> str:
    """Text of a stranger for logs and terminals: no control characters, and not endless."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])


def _refused(row: ScanRow, error: Exception) -> ScanRow:
    """A row whose suspect cannot answer, with the reason."""
    kind = next((words for cls, words in _KINDS if isinstance(error, cls)), None)
    if not isinstance(error, AIAOError):
        kind = f"unexpected {type(error).__name__}"
    reason = " ".join((f"{kind}: {error}" if kind else str(error)).split())
    settled = isinstance(error, AIAOError) and not isinstance(error, HubError | _BudgetSpent)
    return replace(row, verdict="not_testable", reason=_printable(reason), settled=settled)


class _Judge:
    """Reads suspects on the resident denoiser, one after another; identical ones are read once."""

    def __init__(
        self, base: Resident, key: WatermarkKey, record: WatermarkRecord, alpha: float, trials: int, seed: int
    ) -> None:
        self.base, self.key, self.record = base, key, record
        self.alpha, self.trials, self.seed = alpha, trials, seed
        self._seen: dict[str | tuple[str, ...], ScanRow] = {}

    def remember(self, row: ScanRow) -> None:
        """A reading that copies share, by the hash of tensors and by those of files."""
        if row.log10_p is not None and row.copy_of is None:
            for key in (row.digest, row.file_key):
                if key:
                    self._seen.setdefault(key, row)

    def knows(self, key: tuple[str, ...]) -> bool:
        """Whether files with these hashes were read already."""
        return bool(key) and key in self._seen

    def __call__(self, candidate: Candidate, root: Path, row: ScanRow) -> ScanRow:
        started = time.monotonic()
        try:
            row = self._read(candidate, root, row)
        except Exception as error:  # as in `_prepare`: loading a stranger's file may fail in ways nobody listed
            row = _refused(row, error)
        return replace(row, seconds={**row.seconds, "read": time.monotonic() - started})

    def _read(self, candidate: Candidate, root: Path, row: ScanRow) -> ScanRow:
        if self.knows(row.file_key):
            twin = self._seen[row.file_key]
            return _copied(row, twin, 0.0 if twin.digest == self.base.sha256 else twin.distance)
        with place_on_base(candidate, root, row.label, self.base) as put:
            if put.digest in self._seen:
                return _copied(replace(row, digest=put.digest), self._seen[put.digest], put.distance)
            started = time.monotonic()
            report = verify(
                put.opened, self.key, record=self.record, alpha=self.alpha, trials=self.trials, seed=self.seed
            )
            seconds = {**row.seconds, "denoiser": time.monotonic() - started}
        warnings = [*row.warnings, *report.warnings]
        if candidate.kind == "lora" and len(row.lineage) > 1:
            warnings.append(f"declared for {row.lineage[-1]}, read on {row.lineage[0]}")
        row = replace(
            row,
            verdict=report.verdict,
            reason=report.reason,
            log10_p=report.log10_p,
            bit_accuracy=report.bit_accuracy,
            denoiser_evals=report.denoiser_evals,
            distance=put.distance,
            digest=put.digest,
            seconds=seconds,
            warnings=tuple(warnings),
        )
        self.remember(row)
        return row


def _copied(row: ScanRow, twin: ScanRow, distance: float | None) -> ScanRow:
    """A row with its twin's reading: the tensors are identical, so a forward would say the same."""
    return replace(
        row,
        verdict=twin.verdict,
        log10_p=twin.log10_p,
        bit_accuracy=twin.bit_accuracy,
        distance=distance,
        copy_of=twin.label if twin.label != row.label else None,  # an earlier commit of itself is no other suspect
        digest=twin.digest,
    )
