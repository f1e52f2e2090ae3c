"""Run a suite: embed the marks that are missing, then every cell that is not in the results yet."""

import copy
import dataclasses
import hashlib
import itertools
import logging
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ...denoiser.hashes import weights_sha256
from ...denoiser.inputs import LatentData
from ...denoiser.price import predictions
from ...denoiser.setup import denoiser_of
from ...errors import AIAOError, DataError, NotTestableError, ResultsError
from ...files.atomic import write_folder
from ...files.jsonl import append_line, lock_folder
from ...mark.key import WatermarkKey
from ..context import AttackContext, base_of, find, open_data, open_pipe, source_of, write_weights
from ..peers import Outcome
from ..registry import ATTACKS
from . import results as results
from .definition import Cell, Suite, digest, read_suite
from .quality import OTHER_SEED, Quality, open_clip


logger = logging.getLogger(__name__)

ASSETS = Path("examples/emoji_diffusion")
CONTROL_TRIALS = 32  # at most: the verification rate wants many of the marked model, a p-value is exact at any number
WEIGHTS = "denoiser.safetensors"
OWNER = WatermarkKey(bytes(range(32)), "Benchmark")  # public on purpose: its children mark nothing but test models


@dataclass(frozen=True)
class Run:
    """A suite at work: where it reads and writes, and what its files held when it began.

    `prints`: a hash of every file or folder that the suite names. It is part of every identity, so that a run on models or
    data that changed under the same name measures anew.
    """

    suite: Suite
    places: tuple[Path, ...]
    folder: Path
    prints: dict[str, str]

    def identity(self, cell: Cell) -> str:
        """What a finished cell is known by."""
        return digest([self.suite.identity(cell), self.prints])

    def reference_identity(self, cell: Cell) -> str:
        """The same for the base's own row."""
        spec, quality = self.suite.models[cell.model], self.suite.quality.known_by
        data = self.suite.data[cell.data]
        return digest(["reference", dataclasses.asdict(spec), quality, data, cell.seed, self.prints])

    def mark_folder(self, cell: Cell) -> Path:
        """Where a marked model is kept."""
        return self.folder / "marks" / digest([self.suite.mark_identity(cell), self.prints])

    def context(self, cell: Cell, seed: int) -> AttackContext:
        """Model and data of a cell."""
        spec, value = self.suite.models[cell.model], self.suite.data[cell.data]
        owner, data = (_data(spec.path, what, self.places) for what in (spec.data, value))
        shared = self.folder / "shared" / digest([dataclasses.asdict(spec), value, self.prints])
        return AttackContext(_pipe(spec.path, self.places), owner, data, seed, shared, self.places)


def run_suite(
    config: str | Path,
    out: str | Path,
    *,
    assets: str | Path = ASSETS,
    model: str | None = None,
    data: str | None = None,
    clip: str | None = None,
    jobs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing of a suite.

    Args:
        config: a YAML file, or a shipped suite by its name.
        out: folder of `results.jsonl`, marked models and shared files; a killed run goes on there.
        assets: where the suite's relative paths are looked for, after its own folder.
        model, data, clip (`str`, *optional*): use this model, these pictures, this CLIP model instead of the suite's.
        jobs (`int`, defaults to 1): processes; the cores are shared among them.
        progress: called with a line of text as cells finish.
    Returns:
        all rows of this suite, finished earlier or now.
    Raises:
        ConfigError, DataError: before anything is computed. ResultsError: folder locked, of another version, or disk full.
    """
    suite = read_suite(config, model=model, data=data, clip=clip)
    folder = Path(out)
    places = (Path(config).parent.absolute(), Path(assets).absolute())
    say = progress or logger.info
    with lock_folder(folder):
        run = Run(suite, places, folder.absolute(), _check(suite, places))
        done = results.finished(folder)
        for left in (folder / "marks").glob(".partial-*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        cells = list(suite.cells())
        missing = [cell for cell in cells if run.identity(cell) not in done]
        say(f"suite {suite.name}: {len(cells)} cells, {len(cells) - len(missing)} done already")
        marks = {run.mark_folder(cell): cell for cell in missing if not (run.mark_folder(cell) / WEIGHTS).exists()}
        for line in _each(_embed, [(run, cell) for cell in marks.values()], jobs):
            say(line)
        references = {run.reference_identity(cell): (run, cell) for cell in reversed(cells)}
        for row in _each(_reference, [r for identity, r in references.items() if identity not in done], jobs):
            append_line(folder / results.FILE, row)
        groups = [list(group) for _, group in itertools.groupby(missing, key=lambda cell: cell.group)]
        for number, rows in enumerate(_each(_group, [(run, group) for group in groups], jobs), 1):
            for row in rows:
                append_line(folder / results.FILE, row)
                say(f"{number}/{len(groups)} {describe(row)}")
        # What is expected is the suite's of today, and of a cell that failed before the last line counts.
        expected = {run.identity(cell): {"expect": cell.expect} for cell in cells} | dict.fromkeys(references, {})
        rows = {row["id"]: row | expected[row["id"]] for row in results.read(folder) if row["id"] in expected}
        return list(rows.values())


@dataclass(frozen=True)
class EmbeddedMark:
    """A mark that a run has made: its name and key number, the marked denoiser, its key, its folder, and the context."""

    name: str
    number: int
    denoiser: nn.Module
    key: WatermarkKey
    folder: Path
    context: AttackContext


def iter_marks(config: str | Path, out: str | Path, *, assets: str | Path = ASSETS) -> Iterator[EmbeddedMark]:
    """The marks that `run_suite` has made in folder `out`, one at a time.

    Raises:
        DataError: none is there.
    """
    suite, folder = read_suite(config), Path(out).absolute()
    places = (Path(config).parent.absolute(), Path(assets).absolute())
    run = Run(suite, places, folder, _check(suite, places))
    found = {run.mark_folder(cell): cell for cell in suite.cells() if (run.mark_folder(cell) / WEIGHTS).exists()}
    if not found:
        raise DataError(f"no marks of suite {suite.name} in '{out}': make them by `aiao bench run {config} -o {out}`.")
    for place, cell in found.items():
        context = run.context(cell, cell.key)
        key = _key(cell, suite.marks[cell.mark].build(), context)
        yield EmbeddedMark(cell.mark, cell.key, _marked(place, context), key, place, context)


def unexpected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that fail what the suite expects of them; in any row a failure, or a control that verifies by a p-value, as well."""
    bad = []
    for row in rows:
        if row["kind"] != "cell":
            continue
        # A method without a p-value promises no rate of false verdicts; likeness calls every kin a descendant.
        controls = row.get("controls", {}).values()
        false = any(c["verdict"] == "verified" and c["log10_p"] is not None for c in controls)
        if false or row["verdict"] == "failed" or row.get("expect") not in (None, row["verdict"]):
            bad.append(row)
    return bad


def describe(row: dict[str, Any]) -> str:
    """One line for people."""
    hyper = ", ".join(f"{name}={value}" for name, value in row["hyper"].items())
    p = row.get("log10_p")
    number = row.get("error") or (f"log10 p {p:.1f}" if p is not None else f"statistic {row['statistic']}")
    return f"{row['mark']} {row['attack']}({hyper}) seed {row['seed']}: {row['verdict']}, {number}"


def _check(suite: Suite, places: tuple[Path, ...]) -> dict[str, str]:
    """Open every model and data set, also what quality needs, so that a missing folder is found now and not after hours.

    Returns:
        `Run.prints`.
    """
    for spec in suite.models.values():
        for value in (spec.data, *suite.data.values()):
            _fits(_pipe(spec.path, places), _data(spec.path, value, places), spec.path, value)
    named = [spec.path for spec in suite.models.values()]
    for value in (*(spec.data for spec in suite.models.values()), *suite.data.values()):
        named.append(value if isinstance(value, str) else value["folder"])
    for mark in suite.marks.values():
        named += getattr(mark.build(), "sources", ())
    found = {}
    if suite.quality.images:
        # Not among the others: it need not lie on this disk, and it is no denoiser.
        open_clip(suite.quality.clip, places)
        source = source_of(suite.quality.clip, places)
        found[suite.quality.clip] = _print(Path(source)) if Path(source).is_dir() else source
        named += [suite.quality.prompts] if suite.quality.prompts else []
    for name in sorted(set(named)):
        try:
            found[name] = _print(find(name, places))
        except DataError:
            if name not in {spec.path for spec in suite.models.values()}:
                raise
            module = denoiser_of(_pipe(name, places))  # a repository on the Hub
            found[name] = weights_sha256(module) if module is not None else name
    return found


def _fits(pipe: Any, data: LatentData, model: str, value: Any) -> None:
    """Run the denoiser once on these latents, for those of another model fail only after marks were made."""
    denoiser = base_of(pipe)
    try:
        predictions(denoiser, data, pipe.scheduler, samples=1)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, AIAOError):
            raise
        raise DataError(f"the data {value!r} do not fit '{model}' ({error}): encode them with that model.") from error


def _print(path: Path) -> str:
    """SHA-256 over the names and contents of a file, or of all files of a folder."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with open(file, "rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{file.relative_to(path).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _each(task: Callable[..., Any], arguments: list[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """Results as they come: in this process with one job, else in spawned ones that share the cores."""
    if jobs <= 1 or len(arguments) <= 1:
        for item in arguments:
            yield task(*item)
        return
    threads = max(1, len(os.sched_getaffinity(0)) // jobs) if hasattr(os, "sched_getaffinity") else 1
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin, initargs=(threads,)) as pool:
        futures = [pool.submit(task, *item) for item in arguments]
        died: BrokenProcessPool | None = None
        try:
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BrokenProcessPool as error:
                    died = error  # what others had finished by then is still theirs
        finally:
            pool.shutdown(cancel_futures=True)
        if died is not None:
            raise ResultsError(
                "a process of this run was killed, for want of memory perhaps: run again, with fewer jobs; it goes on."
            ) from died


def _begin(threads: int) -> None:
    """In a new process: its share of the cores, and an end when the run is killed, for the folder's lock goes with that."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@lru_cache(maxsize=2)
def _pipe(path: str, places: tuple[Path, ...]) -> Any:
    return open_pipe(path, places)


_DATA: dict[str, LatentData] = {}


def _data(path: str, value: Any, places: tuple[Path, ...]) -> LatentData:
    """Latents for one model; kept, for encoding a folder takes long."""
    key = digest([path, value, *map(str, places)])
    if key not in _DATA:
        _DATA[key] = open_data(_pipe(path, places), value, places)
    return _DATA[key]


def _key(cell: Cell, method: Any, context: AttackContext) -> WatermarkKey:
    key = OWNER.child(f"bench/{cell.key}")
    return method.own_key(key, context) if hasattr(method, "own_key") else key


def _embed(run: Run, cell: Cell) -> str:
    """Make one mark; the folder appears whole or not at all."""
    started, target = time.perf_counter(), run.mark_folder(cell)
    method, context = run.suite.marks[cell.mark].build(), run.context(cell, cell.key)
    try:
        with write_folder(target, prefix=".partial-") as partial:
            denoiser = context.copy_of_base()
            method.embed(denoiser, _key(cell, method, context), context, partial)
            write_weights(denoiser, partial / WEIGHTS)
            shutil.rmtree(target, ignore_errors=True)
    except OSError as error:
        if isinstance(error, AIAOError):
            raise
        raise ResultsError(f"'{target}' cannot be written ({error}): make room and run again.") from error
    return f"marked: {cell.mark}, key {cell.key}, {time.perf_counter() - started:.0f} s"


def _marked(folder: Path, context: AttackContext) -> nn.Module:
    denoiser = context.copy_of_base()
    denoiser.load_state_dict(load_file(folder / WEIGHTS))
    return denoiser.eval()


def _stamp(suite: Suite, kind: str, identity: str) -> dict[str, Any]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        "format": results.FORMAT,
        "id": identity,
        "kind": kind,
        "suite": suite.name,
        "alpha": suite.alpha,
        "finished": now,
        "versions": results.versions(),
    }


def _reference(run: Run, cell: Cell) -> dict[str, Any]:
    """The base against itself with another seed: the spread that every quality figure stands beside."""
    context = run.context(cell, cell.seed)
    quality = Quality(context, run.suite.quality)
    rows = [quality.of(context.base, seed) for seed in (cell.seed, cell.seed + OTHER_SEED + 1)]
    stamp = _stamp(run.suite, "reference", run.reference_identity(cell))
    return stamp | {"model": cell.model, "data": cell.data, "seed": cell.seed, "quality": rows[0], "again": rows[1]}


def _group(run: Run, cells: list[Cell]) -> list[dict[str, Any]]:
    """All marks under one attack with one seed; the attacked unmarked base is made once for their controls."""
    first = cells[0]
    suite, context = run.suite, run.context(first, first.seed)
    quality, attack = Quality(context, suite.quality), ATTACKS[first.attack]
    control: nn.Module | None = None
    rows = []
    for cell in cells:
        row = _stamp(suite, "cell", run.identity(cell)) | dataclasses.asdict(cell)
        row |= {"method": suite.marks[cell.mark].method, "strength": cell.hyper.get(attack.strength or "")}
        try:
            if control is None:
                control = attack.run(context.copy_of_base(), context, **first.hyper).eval()
            rows.append(row | _cell(suite, cell, context, control, quality, run.mark_folder(cell)))
        except Exception as error:  # one impossible value must not cost the other cells
            # A failed cell stays in the table, marked: dropping it would flatter whoever it belongs to. The next run tries it
            # again: a device out of memory fails as a broken attack does.
            rows.append(row | {"verdict": "failed", "error": f"{type(error).__name__}: {error}", "log10_p": None})
    return rows


def _cell(
    suite: Suite, cell: Cell, context: AttackContext, control: nn.Module, quality: Quality, folder: Path
) -> dict[str, Any]:
    """Attack one marked model and read it: the question, its two controls, and what the attack cost."""
    method, attack = suite.marks[cell.mark].build(), ATTACKS[cell.attack]
    key, clock = _key(cell, method, context), [time.perf_counter()]
    marked = _marked(folder, context)
    marked_hash = weights_sha256(marked)
    suspect = attack.run(copy.deepcopy(marked), context, **cell.hyper).eval()
    clock.append(time.perf_counter())
    asked = {"alpha": suite.alpha, "trials": suite.trials, "seed": cell.seed}

    def read(model: nn.Module, key: WatermarkKey) -> Outcome:
        try:
            return method.verify(model, key, context, folder, **asked)
        except NotTestableError:  # a model that an attack has ruined: no verdict, and no failure of the benchmark
            return Outcome("not_testable")

    outcome = read(suspect, key)
    clock.append(time.perf_counter())
    asked["trials"] = min(suite.trials, CONTROL_TRIALS)
    controls = {
        "base": read(control, key),
        "wrong_key": read(suspect, key.child("wrong")),
    }
    clock.append(time.perf_counter())
    cost = quality.of(suspect, cell.seed)
    clock.append(time.perf_counter())
    names = ("attack", "verify", "controls", "quality")
    return {
        **dataclasses.asdict(outcome),
        "controls": {name: dataclasses.asdict(value) for name, value in controls.items()},
        "quality": cost,
        "seconds": {n: round(b - a, 2) for n, a, b in zip(names, clock, clock[1:], strict=False)},
        "hashes": {"base": weights_sha256(context.base), "marked": marked_hash, "suspect": weights_sha256(suspect)},
    }
