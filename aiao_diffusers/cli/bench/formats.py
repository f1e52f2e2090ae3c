"""`aiao bench formats`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .._assets import ASSETS, need_assets
from .._options import AsJson, Quiet, typed
from .._output import out
from ._common import Assets, Folder, deliver, progress


MEASURES = {"assets": "--assets", "trials": "--trials", "seed": "--seed", "memory": "--memory", "output": "--output"}


def formats(
    context: typer.Context,
    assets: Assets = ASSETS,
    trials: Annotated[int, typer.Option(min=1, help="Monte Carlo trials a look, at most.")] = 4,
    seed: Annotated[int, typer.Option(help="Of trials and added factors.")] = 0,
    memory: Annotated[bool, typer.Option("--memory", help="Peak memory on a larger random U-Net instead.")] = False,
    result: Annotated[
        Path | None, typer.Option(help="Print what this JSON of an earlier run says, and measure nothing.")
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="The page of supported files (docs/supported_files.md), not the table.")
    ] = False,
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Every format of adapters and checkpoints: does it load, exactly, and what is the verdict?"""
    given = [flag for name, flag in MEASURES.items() if name in typed(context)]
    if result is not None and given:
        raise typer.BadParameter(f"--result measures nothing: leave out {', '.join(given)}.")
    if memory and page:
        raise typer.BadParameter("--page is of the formats' table: leave out --memory.")
    from ...bench.audits import format_tables as tables
    from ...bench.audits import formats as audit

    if memory:
        with progress("formats", quiet=quiet) as told:
            peaks = audit.memory(progress=told)
        names = ("format", "denoiser_mib", "peak_ratio", "seconds")
        found = [dict(zip(names, row, strict=True)) for row in peaks]
        deliver("formats-memory", found, tables.memory_table(peaks), output, as_json)
        return
    if result is not None:
        rows = tables.read(result)
    else:
        need_assets(assets)
        with progress("formats", quiet=quiet) as told:
            rows = audit.run(assets, trials, seed, progress=told)
    text = tables.page(rows) if page else tables.table(rows)
    deliver("formats", [asdict(row) for row in rows], text, output, as_json)
    odd = audit.unexpected(rows)
    out.note(f"{len(rows)} formats, {len(rows) - len(odd)} as expected{': not ' + ', '.join(odd) if odd else ''}")
    if odd:
        raise typer.Exit(1)
