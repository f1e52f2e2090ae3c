"""`aiao bench inversion`."""

from typing import Annotated

import typer

from .._assets import ASSETS, need_assets
from .._options import AsJson, Quiet
from ._common import Assets, Folder, deliver, progress


def inversion(
    assets: Assets = ASSETS,
    seeds: Annotated[int, typer.Option(min=1, help="Runs on each of two models.")] = 3,
    starts: Annotated[int, typer.Option(min=1, help="Random masks that it climbs from.")] = 16,
    steps: Annotated[int, typer.Option(min=0, help="Of the climb.")] = 40,
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """How near trigger inversion comes to the true masks."""
    need_assets(assets)
    from ...bench.audits import inversion as audit

    with progress("runs", quiet=quiet) as told:
        result = audit.run(assets, seeds=seeds, starts=starts, steps=steps, progress=told)
    deliver("inversion", result, audit.markdown(result), output, as_json)
