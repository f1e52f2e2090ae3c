"""`aiao bench formats`."""

from dataclasses import asdict
from typing import Annotated

import typer

from .._assets import ASSETS, need_assets
from .._options import AsJson, Quiet
from .._output import out
from ._common import Assets, Folder, deliver, progress


def formats(
    assets: Assets = ASSETS,
    trials: Annotated[int, typer.Option(min=1, help="Monte Carlo trials a look, at most.")] = 4,
    seed: Annotated[int, typer.Option(help="Of trials and added factors.")] = 0,
    memory: Annotated[bool, typer.Option("--memory", help="Peak memory on a larger random U-Net instead.")] = False,
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Every format of adapters and checkpoints: does it load, exactly, and what is the verdict?"""
    from ...bench.audits import formats as audit

    if memory:
        with progress("formats", quiet=quiet) as told:
            peaks = audit.memory(progress=told)
        names = ("format", "denoiser_mib", "peak_ratio", "seconds")
        result = [dict(zip(names, row, strict=True)) for row in peaks]
        deliver("formats-memory", result, audit.memory_table(peaks), output, as_json)
        return
    need_assets(assets)
    with progress("formats", quiet=quiet) as told:
        rows = audit.run(assets, trials, seed, progress=told)
    deliver("formats", [asdict(row) for row in rows], audit.table(rows), output, as_json)
    odd = audit.unexpected(rows)
    out.note(f"{len(rows)} formats, {len(rows) - len(odd)} as expected{': not ' + ', '.join(odd) if odd else ''}")
    if odd:
        raise typer.Exit(1)
