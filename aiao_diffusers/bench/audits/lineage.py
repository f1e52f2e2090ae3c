"""Who was this adapter trained on? What the lineage carrier shows and where it loses: `aiao bench lineage`.

Seven parts, each with a file of its own in the run's folder: the grid of trained adapters (`lineage_grid`), which most others start
from; what this version reads in them; p on controls (`lineage_null`); what becomes of files (`lineage_after`); the carrier's price (`lineage_price`);
attackers (`lineage_attackers`); and what a reading costs (`lineage_cost`).
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import ResultsError
from ...files.atomic import write_text
from ...files.strict_json import read_json
from ...lineage.reading import read_lineage
from ..progress import Progress
from ..suite import results
from .change import save
from .lineage_after import Kept, measure_conversions, measure_extraction, measure_merges, measure_transforms
from .lineage_attackers import CELL, Arena, measure_attackers
from .lineage_cells import KEYS, KINDS, LoraCell, cell_of
from .lineage_cost import measure_cost
from .lineage_grid import adapter_file, read_row, run_grid
from .lineage_models import Models, key_of
from .lineage_null import measure_pairs
from .lineage_price import measure_beside_mark, measure_curves, price_keys
from .lineage_training import split, train_adapter


PARTS = ("grid", "reread", "null", "after", "price", "attackers", "cost")
OTHER_BASES, OTHER_STEPS = 2, 60


@dataclass(frozen=True)
class LineageRun:
    """A run's folder, and how much of each part is measured.

    Args:
        assets (`Path`): the example's folder. folder (`Path`): of the run.
        jobs (`int`, defaults to 1): processes of the grid. cells (`int`, *optional*): of the grid; default: all.
        limit_seconds (`float`, *optional*): no cell of the grid is begun later.
        pairs (`int`, defaults to 12,000): of a twin's file and a fresh key. files (`int`, defaults to 24): of each side that are
            transformed. keys (`int`, defaults to 3): that attackers meet. readings (`int`, defaults to 1,000): of the rate.
        seed (`int`, defaults to 0): of fresh keys.
    """

    assets: Path
    folder: Path
    jobs: int = 1
    cells: int | None = None
    limit_seconds: float | None = None
    pairs: int = 12_000
    files: int = 24
    keys: int = KEYS
    readings: int = 1_000
    seed: int = 0
    alpha: float = 1e-6

    def measure(self, part: str, progress: Progress) -> None:
        """Measure one part and keep it.

        Raises:
            ResultsError: it needs adapters, and the grid has none yet; or the folder cannot be written.
        """
        if part == "grid":
            options: dict[str, Any] = {"jobs": self.jobs, "cells": self.cells, "limit_seconds": self.limit_seconds}
            run_grid(self.assets, self.folder, **options, progress=progress)
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            found = _MEASURES[part](self, Models(self.assets, self.folder), progress)
        finally:
            torch.set_num_threads(threads)
        told = {"versions": results.versions(), "seed": self.seed, **found}
        write_text(self.folder / f"{part}.json", json.dumps(told, indent=1) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Of the grid, without those that failed; as they were read again, where they were.

        Raises:
            ResultsError: there are none.
        """
        found = {row["id"]: row for row in results.read(self.folder)}
        again = self.folder / "reread.json"
        for name, reading in (read_json(again)["readings"] if again.is_file() else {}).items():
            found[name] |= reading
        rows = [row for row in found.values() if row["verdict"] != "failed"]
        if not rows:
            raise ResultsError(f"no adapters in '{self.folder}': measure the part grid first.")
        return rows

    def read(self) -> dict[str, Any]:
        """What the folder holds, by part; parts that were not measured are left out."""
        found: dict[str, Any] = {}
        for part in PARTS:
            if part == "grid":
                if (self.folder / results.FILE).is_file():
                    found[part] = {"rows": self.rows()}
            elif part == "reread":
                continue
            elif (self.folder / f"{part}.json").is_file():
                found[part] = read_json(self.folder / f"{part}.json")
        return found

    def kept(self, rows: Sequence[dict[str, Any]], models: Models) -> list[Kept]:
        """The files of rows, with their keys and denoisers."""
        return [
            Kept(adapter_file(self.folder, row["id"]), row["side"], key_of(row["key"]), models.twin(row["kind"]))
            for row in rows
        ]


def _counted(progress: Progress, total: int) -> Callable[..., None]:
    done = 0

    def tick(line: str = "") -> None:
        nonlocal done
        done += 1
        progress(done, total, line)

    return tick


def _measure_again(run: LineageRun, models: Models, progress: Progress) -> dict[str, Any]:
    """Every kept adapter, read by this version."""
    rows, readings = run.rows(), {}
    tick = _counted(progress, len(rows))
    for row in rows:
        cell = cell_of(row)
        readings[row["id"]] = read_row(adapter_file(run.folder, row["id"]), cell, models)
        raw = adapter_file(run.folder, row["id"], "raw")
        if raw.is_file():
            readings[row["id"]]["raw"] = read_row(raw, cell, models)
        tick()
    return {"readings": readings}


def _measure_null(run: LineageRun, models: Models, progress: Progress) -> dict[str, Any]:
    rows = run.rows()
    sides = {
        side: [(one.file, one.base) for one in run.kept([row for row in rows if row["side"] == side], models)]
        for side in ("twin", "carrier")
    }
    groups = [("adapters of clean twins, fresh keys", sides["twin"], run.pairs)]
    groups.append(("adapters of carrying models, wrong keys", sides["carrier"], max(1, run.pairs // 3)))
    options: dict[str, Any] = {"seed": run.seed, "alpha": run.alpha, "progress": progress}
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        others = _of_other_bases(models, Path(scratch))
        groups.append(("adapters of bases with other weights, fresh keys", others, max(1, run.pairs // 12)))
        for name, files, pairs in groups:
            if files:
                found.append(measure_pairs(name, files, pairs, **options))
    other = [row for row in rows if row["side"] == "carrier" and row["verdict"] != "not_testable"]
    rivals = [_read_rival(run, models, row) for row in other]
    return {"groups": found, "rivals": {"n": len(rivals), "smallest": min(rivals, default=None)}}


def _read_rival(run: LineageRun, models: Models, row: dict[str, Any]) -> float:
    """A carrying model's adapter under the key of the next carrying model."""
    (kept,) = run.kept([row], models)
    found = read_lineage(kept.file, key_of((row["key"] + 1) % KEYS), kept.base)
    return found.log10_p or 0.0


def _of_other_bases(models: Models, scratch: Path) -> list[tuple[Path, nn.Module]]:
    """Adapters of models with random weights, trained for a short while."""
    found = []
    for seed in range(OTHER_BASES):
        twin: Any = models.twin("base")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            base = type(twin).from_config(twin.config)
        cell = LoraCell(lr=1e-3, steps=OTHER_STEPS, targets="all linear", seed=seed)
        data, scheduler = models.data("base"), models.scheduler("base")
        made = train_adapter(base, cell, split(data, cell.pictures, seed), scheduler)
        found.append((save(scratch / f"{seed}.safetensors", made.state), twin))
    return found


def _measure_after(run: LineageRun, models: Models, progress: Progress) -> dict[str, Any]:
    rows = [row for row in run.rows() if cell_of(row).usual and row["targets"] != "conv"]
    sides = [
        run.kept([row for row in rows if row["side"] == side], models)[: run.files] for side in ("carrier", "twin")
    ]
    tick = _counted(progress, 2 * len(sides[0] + sides[1]) + len(sides[0]) + KEYS)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        found = measure_transforms(sides[0] + sides[1], scratch, tick)
        merges = measure_merges(sides[0], sides[1], scratch, tick) if len(sides[1]) > 4 else []
        few = [one for side in sides for one in side[: max(1, run.files // 4)]]
        conversions = measure_conversions(few, scratch, tick)
        extraction = measure_extraction(_fine_tunes(models, tick), scratch)
    return {"transforms": found, "merges": merges, "conversions": conversions, "extraction": extraction}


def _fine_tunes(models: Models, tick: Callable[[], None]) -> list[Any]:
    """Side, key, the model and a full fine-tune of it: of each key, and its clean twin under that key."""
    found = []
    for number in range(KEYS):
        for side in ("carrier", "twin"):
            pair = [models.model("base", number, side, became) for became in ("whole", "fine-tuned")]
            found.append((side, key_of(number), *pair))
        tick()
    return found


def _measure_price(run: LineageRun, models: Models, progress: Progress) -> dict[str, Any]:
    seeds = range(run.keys)
    tick = _counted(progress, len(KINDS) * run.keys + 2 * run.keys + 1)
    prices = price_keys(models, KINDS, seeds, tick)
    beside = measure_beside_mark(run.assets, models)
    tick()
    return {"prices": prices, "beside": beside, "curves": measure_curves(models, seeds, tick)}


def _measure_attackers(run: LineageRun, models: Models, progress: Progress) -> dict[str, Any]:
    tick, rows = _counted(progress, 13 * run.keys), []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(run.keys):
            rows += measure_attackers(Arena(models, number, CELL, Path(scratch)), tick)
    return {"rows": rows, "rank": CELL.rank, "steps": CELL.steps, "lr": CELL.lr, "targets": CELL.targets}


def _measure_cost(run: LineageRun, models: Models, progress: Progress) -> dict[str, Any]:
    row = next((row for row in run.rows() if row["kind"] == "base" and row["verdict"] != "not_testable"), None)
    if row is None:
        raise ResultsError(f"no adapter of the text-to-image example in '{run.folder}': train more of the grid.")
    with tempfile.TemporaryDirectory() as scratch:
        kept, tick = adapter_file(run.folder, row["id"]), _counted(progress, 6)
        return measure_cost(models, kept, Path(scratch), count=run.readings, progress=tick)


_MEASURES: dict[str, Callable[[LineageRun, Models, Progress], dict[str, Any]]] = {
    "reread": _measure_again,
    "null": _measure_null,
    "after": _measure_after,
    "price": _measure_price,
    "attackers": _measure_attackers,
    "cost": _measure_cost,
}
