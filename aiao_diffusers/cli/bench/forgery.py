"""`aiao bench forgery`."""

from pathlib import Path
from typing import Annotated

import typer

from .._assets import ASSETS, need_assets
from .._options import AsJson, Quiet
from ._common import Assets, Folder, deliver, progress


def forgery(
    assets: Assets = ASSETS,
    draws: Annotated[int, typer.Option(min=2, help="Beacons drawn for each forgery.")] = 100,
    trials: Annotated[int, typer.Option(min=1, help="Of each look.")] = 4,
    steps: Annotated[int, typer.Option(min=3, help="Of gradient ascent on a probe bank.")] = 100,
    keys: Annotated[int, typer.Option(min=1, help="Secrets that the claimant tries.")] = 300,
    guesses: Annotated[int, typer.Option(min=1, help="Beacons that the claimant guesses.")] = 2,
    tune: Annotated[int, typer.Option(min=1, help="Steps of the fine-tune that the claimant never sees.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the claimant; the judge's is another.")] = 0,
    results: Annotated[
        Path | None, typer.Option(help="Print the table of an earlier run, its forgery.json, and measure nothing.")
    ] = None,
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Can a dishonest claimant forge a verdict on an unmarked model, who writes key, record and commitment?

    Exit code 1 where scheme aiao-2 gives one.
    """
    from ...bench.audits import forgery_table

    if results is not None:
        result = forgery_table.load(results)
    else:
        need_assets(assets)
        from ...bench.audits import forgery as audit

        effort = audit.Effort(steps, keys, guesses, tune)
        with progress("forgeries", quiet=quiet) as told:
            result = audit.run(assets, draws=draws, trials=trials, effort=effort, seed=seed, progress=told)
    deliver("forgery", result, forgery_table.markdown(result), output, as_json)
    if forgery_table.verdicts(result):
        raise typer.Exit(1)
