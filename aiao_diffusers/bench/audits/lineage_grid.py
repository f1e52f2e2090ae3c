"""Train the grid of adapters, read each file, and keep both: a run that may be stopped and goes on."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...denoiser.hashes import tensor_sha256
from ...errors import ResultsError, TrainingError
from ...files.atomic import write_whole
from ...files.jsonl import append_line, lock_folder
from ...lineage.reading import read_lineage
from ..progress import Progress
from ..suite import results
from ..suite.workers import run_tasks
from .lineage_cells import LoraCell, grid
from .lineage_models import Models, key_of
from .lineage_training import held_out_loss, split, train_adapter


def adapter_file(folder: Path, cell: str, what: str = "adapter") -> Path:
    """Where a cell's adapter is kept."""
    return folder / "adapters" / f"{cell}-{what}.safetensors"


def run_grid(
    assets: Path,
    folder: Path,
    *,
    jobs: int = 1,
    cells: int | None = None,
    limit_seconds: float | None = None,
    of: Callable[[], list[LoraCell]] = grid,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train what is missing.

    Args:
        assets: the example's folder. folder: of the run, where a second call goes on.
        jobs: processes, of one thread each. cells: how many of the grid's first; default: all.
        limit_seconds: no cell is begun later than this.
        of: the list of cells.
    Returns:
        all rows, trained earlier or now.
    Raises:
        ResultsError: the folder is in use, of another version, or cannot be written.
    """
    with lock_folder(folder):
        finished = results.finished(folder)
        wanted = of()[:cells]
        missing = [cell for cell in wanted if cell.id not in finished]
        done, ends = len(wanted) - len(missing), None if limit_seconds is None else time.monotonic() + limit_seconds
        progress(done, len(wanted), f"{len(wanted)} adapters, {done} trained already")
        size = jobs if ends is not None else max(1, len(missing))
        for start in range(0, len(missing), size):
            if ends is not None and time.monotonic() > ends:
                break
            tasks = [(assets, folder, cell) for cell in missing[start : start + size]]
            for row in run_tasks(_measure, tasks, jobs):
                append_line(folder / results.FILE, row)
                done += 1
                progress(done, len(wanted), describe(row))
        known = {cell.id for cell in wanted}
        if not (folder / results.FILE).exists():
            return []
        return list({row["id"]: row for row in results.read(folder) if row["id"] in known}.values())


def describe(row: dict[str, Any]) -> str:
    """One line for people."""
    what = f"{row['kind']} {row['side']} {row['method']} rank {row['rank']}, {row['steps']} steps at {row['lr']:g}"
    p = row["log10_p"]
    return f"{what}: {row['verdict']}{'' if p is None else f', log10 p {p:.1f}'}, {row['seconds']:.0f} s"


@lru_cache(1)
def _models(assets: Path, folder: Path) -> Models:
    return Models(assets, folder)


def _measure(assets: Path, folder: Path, cell: LoraCell) -> dict[str, Any]:
    torch.set_num_threads(1)
    models, started = _models(assets, folder), time.perf_counter()
    row = {"id": cell.id, "format": results.FORMAT, "versions": results.versions(), **asdict(cell)}
    data, scheduler = models.data(cell.kind), models.scheduler(cell.kind)
    denoiser = models.model(cell.kind, cell.key, cell.side, cell.model)
    base, before = tensor_sha256(denoiser.state_dict()), held_out_loss(denoiser, data, scheduler)
    begun = time.perf_counter()
    try:
        made = train_adapter(denoiser, cell, split(data, cell.pictures, cell.seed), scheduler)
    except TrainingError as error:
        return row | {"verdict": "failed", "log10_p": None, "error": str(error), "seconds": 0.0}
    trained = time.perf_counter() - begun
    row |= {"base": base, "loss_before": before, "loss_after": held_out_loss(denoiser, data, scheduler)}
    row |= {"loss_first": made.first, "loss_last": made.last, "training_seconds": trained}
    file = adapter_file(folder, cell.id)
    _keep(made.state, file)
    row |= read_row(file, cell, models)
    if made.raw is not None:
        raw = adapter_file(folder, cell.id, "raw")
        _keep(made.raw, raw)
        row["raw"] = read_row(raw, cell, models)
    return row | {"seconds": time.perf_counter() - started}


def read_row(file: Path, cell: LoraCell, models: Models) -> dict[str, Any]:
    """What a file says under the key of its cell: of a twin's, the key that its carrying sister has."""
    found = read_lineage(file, key_of(cell.key), models.twin(cell.kind))
    looks = {look["label"]: look["log10_p"] for look in found.looks}
    shown = {"verdict": found.verdict, "log10_p": found.log10_p, "looks": looks, "share": found.share}
    return shown | {"reason": found.reason, "sha256": found.sha256}


def _keep(state: dict[str, torch.Tensor], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with write_whole(file) as partial:
            save_file({name: value.contiguous() for name, value in state.items()}, partial)
    except OSError as error:
        raise ResultsError(f"'{file}' cannot be written ({error}): make room and run again, it goes on.") from error
