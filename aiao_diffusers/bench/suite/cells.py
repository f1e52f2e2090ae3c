"""The rows of a suite: a marked model attacked, read and weighed beside its controls."""

import copy
import dataclasses
import time
from pathlib import Path
from typing import Any

from torch import nn

from ...denoiser.hashes import weights_sha256
from ...errors import NotTestableError
from ...mark.key import WatermarkKey
from ..context import AttackContext
from ..peers import Outcome
from ..registry import ATTACKS
from . import results as results
from .definition import Cell, Suite
from .marks import key_of, load_mark
from .quality import OTHER_SEED, Quality
from .run import Run


CONTROL_TRIALS = 32  # at most: the verification rate wants many of the marked model, a p-value is exact at any number


def _header(suite: Suite, kind: str, identity: str) -> dict[str, Any]:
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


def measure_reference(run: Run, cell: Cell) -> dict[str, Any]:
    """The base against itself with another seed: the spread that every quality figure stands beside."""
    context = run.context(cell, cell.seed)
    quality = Quality(context, run.suite.quality)
    rows = [quality.of(context.base, seed) for seed in (cell.seed, cell.seed + OTHER_SEED + 1)]
    stamp = _header(run.suite, "reference", run.reference_identity(cell))
    return stamp | {"model": cell.model, "data": cell.data, "seed": cell.seed, "quality": rows[0], "again": rows[1]}


def measure_group(run: Run, cells: list[Cell]) -> list[dict[str, Any]]:
    """All marks under one attack with one seed; the attacked unmarked base is made once for their controls."""
    first = cells[0]
    suite, context = run.suite, run.context(first, first.seed)
    quality, attack = Quality(context, suite.quality), ATTACKS[first.attack]
    control: nn.Module | None = None
    rows = []
    for cell in cells:
        row = _header(suite, "cell", run.identity(cell)) | dataclasses.asdict(cell)
        row |= {"method": suite.marks[cell.mark].method, "strength": cell.hyper.get(attack.strength or "")}
        try:
            if control is None:
                control = attack.run(context.copy_of_base(), context, **first.hyper).eval()
            rows.append(row | _measure_cell(suite, cell, context, control, quality, run.mark_folder(cell)))
        except Exception as error:  # one impossible value must not cost the other cells
            # A failed cell stays in the table, marked: dropping it would flatter whoever it belongs to. The next run tries it
            # again: a device out of memory fails as a broken attack does.
            rows.append(row | {"verdict": "failed", "error": f"{type(error).__name__}: {error}", "log10_p": None})
    return rows


def _measure_cell(
    suite: Suite, cell: Cell, context: AttackContext, control: nn.Module, quality: Quality, folder: Path
) -> dict[str, Any]:
    """Attack one marked model and read it: the question, its two controls, and what the attack cost."""
    method, attack = suite.marks[cell.mark].build(), ATTACKS[cell.attack]
    key, clock = key_of(cell, method, context), [time.perf_counter()]
    marked = load_mark(folder, context)
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
