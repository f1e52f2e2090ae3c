"""The marks of a suite: made once, kept in the run's folder, found again."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from ...errors import AIAOError, DataError, ResultsError
from ...files.atomic import write_folder
from ...mark.key import WatermarkKey
from ..context import ASSETS, AttackContext, write_weights
from .definition import Cell, read_suite
from .run import Run, open_run


WEIGHTS = "denoiser.safetensors"
OWNER = WatermarkKey(bytes(range(32)), "Benchmark")  # public on purpose: its children mark nothing but test models


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
    suite = read_suite(config)
    run = open_run(suite, config, Path(out), assets)
    found = {run.mark_folder(cell): cell for cell in suite.cells() if (run.mark_folder(cell) / WEIGHTS).exists()}
    if not found:
        raise DataError(f"no marks of suite {suite.name} in '{out}': make them by `aiao bench run {config} -o {out}`.")
    for place, cell in found.items():
        context = run.context(cell, cell.key)
        key = key_of(cell, suite.marks[cell.mark].build(), context)
        yield EmbeddedMark(cell.mark, cell.key, load_mark(place, context), key, place, context)


def key_of(cell: Cell, method: Any, context: AttackContext) -> WatermarkKey:
    """The key of a cell's mark: the benchmark's, or that of a model which was marked already."""
    key = OWNER.child(f"bench/{cell.key}")
    return method.own_key(key, context) if hasattr(method, "own_key") else key


def embed_mark(run: Run, cell: Cell) -> str:
    """Make one mark; the folder appears whole or not at all."""
    started, target = time.perf_counter(), run.mark_folder(cell)
    method, context = run.suite.marks[cell.mark].build(), run.context(cell, cell.key)
    try:
        with write_folder(target, prefix=".partial-") as partial:
            denoiser = context.copy_of_base()
            method.embed(denoiser, key_of(cell, method, context), context, partial)
            write_weights(denoiser, partial / WEIGHTS)
            shutil.rmtree(target, ignore_errors=True)
    except OSError as error:
        if isinstance(error, AIAOError):
            raise
        raise ResultsError(f"'{target}' cannot be written ({error}): make room and run again.") from error
    return f"marked: {cell.mark}, key {cell.key}, {time.perf_counter() - started:.0f} s"


def load_mark(folder: Path, context: AttackContext) -> nn.Module:
    """The marked denoiser that `embed_mark` left in `folder`."""
    denoiser = context.copy_of_base()
    denoiser.load_state_dict(load_file(folder / WEIGHTS))
    return denoiser.eval()
