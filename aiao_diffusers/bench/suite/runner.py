"""Run a suite: embed the marks that are missing, then every cell that is not in the results yet."""

import itertools
import shutil
from pathlib import Path
from typing import Any

from ...files.jsonl import append_line, lock_folder
from ..context import ASSETS
from ..progress import Progress, log_progress
from . import results as results
from .cells import measure_group, measure_reference
from .definition import read_suite
from .marks import WEIGHTS, embed_mark
from .run import open_run
from .workers import run_tasks


def run_suite(
    config: str | Path,
    out: str | Path,
    *,
    assets: str | Path = ASSETS,
    model: str | None = None,
    data: str | None = None,
    clip: str | None = None,
    jobs: int = 1,
    progress: Progress = log_progress,
) -> list[dict[str, Any]]:
    """Run what is missing of a suite.

    Args:
        config: a YAML file, or a shipped suite by its name.
        out: folder of `results.jsonl`, marked models and shared files; a killed run goes on there.
        assets: where the suite's relative paths are looked for, after its own folder.
        model, data, clip (`str`, *optional*): use this model, these pictures, this CLIP model instead of the suite's.
        jobs (`int`, defaults to 1): processes; the cores are shared among them.
        progress: told of cells as they finish.
    Returns:
        all rows of this suite, finished earlier or now.
    Raises:
        ConfigError, DataError: before anything is computed. ResultsError: folder locked, of another version, or disk full.
    """
    suite = read_suite(config, model=model, data=data, clip=clip)
    folder = Path(out)
    with lock_folder(folder):
        run = open_run(suite, config, folder, assets)
        finished = results.finished(folder)
        for left in (folder / "marks").glob(".partial-*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        cells = list(suite.cells())
        missing = [cell for cell in cells if run.identity(cell) not in finished]
        done, total = len(cells) - len(missing), len(cells)
        progress(done, total, f"suite {suite.name}: {total} cells, {done} done already")
        marks = {run.mark_folder(cell): cell for cell in missing if not (run.mark_folder(cell) / WEIGHTS).exists()}
        for line in run_tasks(embed_mark, [(run, cell) for cell in marks.values()], jobs):
            progress(done, total, line)
        references = {run.reference_identity(cell): (run, cell) for cell in reversed(cells)}
        wanted = [task for identity, task in references.items() if identity not in finished]
        for row in run_tasks(measure_reference, wanted, jobs):
            append_line(folder / results.FILE, row)
        groups = [list(group) for _, group in itertools.groupby(missing, key=lambda cell: cell.group)]
        for number, rows in enumerate(run_tasks(measure_group, [(run, group) for group in groups], jobs), 1):
            for row in rows:
                append_line(folder / results.FILE, row)
                done += 1
                progress(done, total, f"{number}/{len(groups)} {describe(row)}")
        # What is expected is the suite's of today, and of a cell that failed before the last line counts.
        expected = {run.identity(cell): {"expect": cell.expect} for cell in cells} | dict.fromkeys(references, {})
        found = {row["id"]: row | expected[row["id"]] for row in results.read(folder) if row["id"] in expected}
        return list(found.values())


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
