"""`aiao bench ranks`."""

from typing import Annotated

import typer

from .._assets import ASSETS, need_assets
from .._options import AsJson, Quiet
from ._common import Assets, Folder, deliver, progress


def ranks(
    assets: Assets = ASSETS,
    seeds: Annotated[int, typer.Option(min=1, help="Of the attack and of the reading.")] = 5,
    trials: Annotated[int, typer.Option(min=1, help="Of each reading.")] = 8,
    wrong: Annotated[int, typer.Option(min=1, help="Wrong keys a reading.")] = 50,
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Hits against rank scores on attacked models; minutes."""
    need_assets(assets)
    from ...bench.audits import rank_scores

    with progress("rows", quiet=quiet) as told:
        result = rank_scores.run(assets, seeds=seeds, trials=trials, wrong=wrong, progress=told)
    deliver("ranks", result, rank_scores.markdown(result), output, as_json)
