"""`aiao bench lineage`."""

from pathlib import Path
from typing import Annotated

import typer

from .._assets import ASSETS, need_assets
from .._options import AsJson, Quiet, typed
from .._output import out
from ._common import Assets, progress


# As `bench.audits.lineage.PARTS` has them, which is slow to import.
PARTS = ("grid", "reread", "null", "after", "price", "attackers", "cost")
OF_GRID = {"jobs": "--jobs", "cells": "--cells", "limit_seconds": "--limit-seconds"}


def lineage(
    context: typer.Context,
    part: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; repeatable. Default: all, in this order.")
    ] = None,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Folder of results, models and adapters; a second call goes on from it."),
    ] = Path("runs/lineage"),
    assets: Assets = ASSETS,
    tables: Annotated[
        bool, typer.Option("--tables", help="Print what the folder holds, and measure nothing.")
    ] = False,
    update: Annotated[
        Path | None, typer.Option(help="Rewrite the tables of this Markdown file, of the parts that were measured.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes of the grid.")] = 1,
    cells: Annotated[int | None, typer.Option(min=1, help="How many of the grid's adapters, from its first.")] = None,
    limit_seconds: Annotated[
        float | None, typer.Option(min=0, help="Begin no adapter of the grid later than this.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=12, help="Files and fresh keys, of the part null.")] = 12_000,
    files: Annotated[int, typer.Option(min=1, help="Adapters of each side, of the part after.")] = 24,
    keys: Annotated[int, typer.Option(min=1, max=3, help="Of the parts price and attackers.")] = 3,
    readings: Annotated[int, typer.Option(min=1, help="Of the rate, in the part cost.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Of fresh keys.")] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Adapters trained on carrying models and on clean twins: which files tell where they come from, and who hides it?"""
    wanted = tuple(part or PARTS)
    if unknown := [name for name in wanted if name not in PARTS]:
        raise typer.BadParameter(f"--part {unknown[0]!r} is none of {', '.join(PARTS)}.")
    given = [flag for name, flag in OF_GRID.items() if name in typed(context)]
    if given and (tables or "grid" not in wanted):
        raise typer.BadParameter(f"{', '.join(given)} trains adapters: add --part grid and leave out --tables.")
    need_assets(assets)
    from ...bench.audits.lineage import LineageRun
    from ...bench.audits.lineage_tables import markdown
    from ...bench.audits.lineage_tables import update as rewrite

    measured = {"pairs": pairs, "files": files, "keys": keys, "readings": readings, "seed": seed}
    run = LineageRun(assets, output, jobs, cells, limit_seconds, **measured)
    for name in () if tables else sorted(set(wanted), key=PARTS.index):
        with progress(f"lineage, {name}", quiet=quiet) as told:
            run.measure(name, told)
    shown = {*wanted, "grid"} if "reread" in wanted else set(wanted)
    found = {name: result for name, result in run.read().items() if name in shown}
    if not found:
        raise typer.BadParameter(
            f"'{output}' holds none of {', '.join(wanted)}: measure them first, without --tables."
        )
    if update is not None:
        out.note(f"wrote {rewrite(update, found)}")
    if as_json:
        out.json(found)
    else:
        out.text(markdown(found).rstrip("\n"))
