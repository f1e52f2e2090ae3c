"""Scan a Hub for who carries a mark: the model tree of a base, and whatever else the owner names.

Per repository: look up its commit, read headers, refuse what does not fit, name copies by hash, download the rest ahead of
verification, read the mark on the one resident denoiser, write a line to the log, drop the files. A repository that is
broken, hostile or out of reach becomes a `not_testable` row with its reason, and the scan goes on.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi

from ..errors import ConfigError, KeyMismatchError, NotTestableError
from ..files.jsonl import lock_folder
from ..formats.checkpoint import load_denoiser
from ..hub.candidates import MAX_CANDIDATES
from ..hub.download import pull
from ..hub.model_tree import LIMIT, RELATIONS, Tree, walk
from ..hub.remote import folder_of
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from ..verification.plan import Futility, ReadingPlan
from ..verification.suspect import find_record, require_record
from ..verification.verify import verify
from .download import Budget, Downloader, run_ahead
from .judge import Judge, Question, summarise
from .log import ScanLog, ScanRow
from .report import ScanReport
from .resident import Resident, file_key


LOG, DOWNLOADS = "scan.jsonl", ".aiao-downloads-"
Callback = Callable[[tuple[ScanRow, ...], int, int], None]


@dataclass(frozen=True)
class _Base:
    """The scanned base: itself in memory, and its own reading as the log would have it, the positive control."""

    resident: Resident
    record: WatermarkRecord
    row: ScanRow
    commit: str
    log10_p: float


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
    thorough: bool = False,
    workers: int = 4,
    max_gb: float | None = None,
    limit: int = LIMIT,
    api: HfApi | None = None,
    callback: Callback | None = None,
) -> ScanReport:
    """Who of the descendants of `base_repo` carries the mark of `key`?

    Args:
        base_repo (`str`): repository of the marked model. key: its key.
        output (defaults to `aiao-scan`): folder of `scan.jsonl`, which a second call with the same arguments goes on from,
            and of `report.md`, `.html`, `.csv` and `.json`.
        record: a `WatermarkRecord` or a folder with it; default: the one in `base_repo`.
        repos, authors, search, relations, since, limit: which repositories, see `model_tree.walk`.
        alpha (`float`, defaults to 1e-6): chance of even one false `verified` in the whole scan.
        trials, seed: as in `verify`. thorough (`bool`, defaults to False): take every look at every suspect, 128 evaluations for a
            negative; the fast plan takes 8 (`verification.plan`). workers (`int`, defaults to 4): downloads at a time.
        max_gb (`float`, *optional*): gigabytes downloaded at most; the rest is `not_testable` until resumed with more.
        callback: called after each repository with its rows, the number done and the number of all.
    Returns:
        `ScanReport`; its verdicts are corrected over the scan by Holm's adjustment. Where the record's mark has a lineage carrier, each
        adapter is also asked on which model it was trained, by its file alone, whether or not it stands in the tree.
    Raises:
        ConfigError: a number out of range. KeyMismatchError: the record is of another key. NotTestableError: the base does
        not read with this key, so no answer of the scan would mean anything. ResultsError: another scan runs in `output`,
        or it cannot be written to. OutputExistsError: `output` holds another scan. HubError, RecordError: the base, its
        record or its tree cannot be read.
    Source: our choice.
    """
    if not 0 < alpha < 1 or trials < 1 or workers < 1 or (max_gb is not None and max_gb < 0):
        raise ConfigError(f"alpha={alpha}, trials={trials}, workers={workers} or max_gb={max_gb} is out of range.")
    started, folder, api = time.monotonic(), Path(output), api or HfApi()
    with lock_folder(folder):  # first of all: what another scan has there is not ours to touch
        plan = ReadingPlan(alpha, trials, seed, futility=None if thorough else Futility())
        base = _open_base(base_repo, key, record, plan, api)
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
        header = {"base": base_repo, "commit": base.commit, "commitment": key.commitment, "alpha": alpha}
        header |= {"trials": trials, "seed": seed, "scheme": base.record.scheme}
        # A log without a plan is of a version that knew none but the thorough one.
        header = header if thorough else {**header, "plan": plan.name}
        log = ScanLog(folder / LOG, header, asks_lineage=base.record.lineage is not None)
        judge, budget = _open_judge(base, key, plan, len(tree.nodes), log), Budget(max_gb)
        with _downloads(folder) as downloads:
            members = frozenset({base_repo, *(n.repo_id for n in tree.nodes if n.lineage)})
            _read_all(tree, Downloader(judge, log, members, budget, downloads, api), workers, callback)
        told: dict[str, Any] = {
            "plan": plan.name,
            "seconds": time.monotonic() - started,
            "downloaded": budget.spent,
            "repositories": len(tree.nodes),
        }
        warnings = (*tree.warnings, *_describe_base(base))
        report = ScanReport(
            *(base_repo, base.commit, key.owner, key.commitment, alpha, base.log10_p, log.rows(), warnings, told),
            carrier_alone=not judge.question.reads_base,
        )
        report.save(folder)
    return report


def _open_base(repo: str, key: WatermarkKey, record: Any, plan: ReadingPlan, api: HfApi) -> _Base:
    """Download the base, and make sure that it carries the mark; raises as `scan`."""
    pulled = pull(repo, api=api)
    chosen = require_record(record, find_record(pulled.root))
    if not chosen.belongs_to(key):
        raise KeyMismatchError(f"the record of {repo} is of {chosen.owner!r} and commits to another key.")
    commit = pulled.remote.commit
    resident = Resident(load_denoiser(pulled.path, dtype=torch.float32), f"{repo} at {commit}")
    control = verify(resident.denoiser, key, record=chosen, plan=replace(plan, futility=None))
    if not control.verified or control.log10_p is None:
        raise NotTestableError(f"{repo} itself does not verify with this key: a scan would tell nothing.")
    row = ScanRow(
        *(repo, commit, "", None, (), "base", control.verdict),
        log10_p=control.log10_p,
        bit_accuracy=control.bit_accuracy,
        digest=resident.sha256,
        file_key=file_key(pulled.remote, pulled.candidate),
        lineage_reading=None if control.asks_lineage or not control.lineage else summarise(control.lineage),
    )
    return _Base(resident, chosen, row, commit, control.log10_p)


def _describe_base(base: _Base) -> list[str]:
    """What the report must say of the mark and of the base that was to show it."""
    if base.record.lineage is None:
        return []
    if base.record.lineage["only"]:
        return [
            "the mark is a lineage carrier alone: whole models are read by their weights, without a forward, and one that verifies "
            "descends from the marked model, or was made with knowledge of it."
        ]
    shown = (base.row.lineage_reading or {}).get("verdict")
    return (
        []
        if shown == "verified"
        else [f"the base's own weights do not show the lineage carrier ({shown}): lineages may be missed."]
    )


def _open_judge(base: _Base, key: WatermarkKey, plan: ReadingPlan, repositories: int, log: ScanLog) -> Judge:
    """Asks with the alpha that any one suspect must pass, for all tests of the scan share it; knows what the log has read."""
    tests = MAX_CANDIDATES * max(1, repositories) * (2 if log.asks_lineage else 1)
    judge = Judge(base.resident, Question(key, base.record, replace(plan, alpha=plan.alpha / tests)))
    for row in (base.row, *log.rows()):
        judge.remember(row)
    return judge


@contextmanager
def _downloads(folder: Path) -> Iterator[str]:
    """A folder for downloads, which goes with the block; the caller holds the lock of `folder`."""
    for left in folder.glob(f"{DOWNLOADS}*"):  # by a run that was killed; nothing else in the folder is ours to remove
        shutil.rmtree(left, ignore_errors=True)
    downloads = tempfile.mkdtemp(dir=folder, prefix=DOWNLOADS)
    try:
        yield downloads
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _read_all(tree: Tree, downloader: Downloader, workers: int, callback: Callback | None) -> None:
    """Every repository that the log has not settled, as it is ready."""
    judge, log = downloader.judge, downloader.log
    todo = [node for node in tree.nodes if not log.settled(node.repo_id, node.sha)]
    done = len(tree.nodes) - len(todo)
    for ready in run_ahead(todo, downloader.prepare, workers):
        done += 1
        if not ready.known:
            rows = (*ready.rows, *map(judge.read, ready.suspects))
            log.write(ready.node.repo_id, ready.commit, rows)
            if callback is not None:
                callback(rows, done, len(tree.nodes))
        if ready.remote is not None:
            shutil.rmtree(folder_of(ready.remote.repo_id, downloader.folder), ignore_errors=True)
