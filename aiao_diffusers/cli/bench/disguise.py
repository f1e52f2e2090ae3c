"""`aiao bench disguise`."""

from typing import Annotated

import typer

from .._assets import ASSETS, need_assets
from .._options import AsJson, Quiet
from ._common import Assets, Folder, deliver, progress


def disguise(
    assets: Assets = ASSETS,
    seeds: Annotated[int, typer.Option(min=1, help="Suspects a row, each with its own disguise and trials.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Of fine-tuning after the disguise, batch 16, lr 1e-4.")] = 50,
    only: Annotated[str, typer.Option(help="Rows whose name contains this.")] = "",
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Read through function-preserving disguises, with controls."""
    need_assets(assets)
    from ...bench.audits import disguises

    with progress("rows", quiet=quiet) as told:
        result = disguises.run(assets, seeds=seeds, steps=steps, only=only, progress=told)
    deliver("disguise", result, disguises.markdown(result), output, as_json)
