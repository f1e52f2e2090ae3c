"""`aiao bench nulls`."""

from typing import Annotated

import typer

from .._assets import ASSETS, need_assets
from .._options import AsJson, Quiet
from ._common import Assets, Folder, deliver, progress


def nulls(
    assets: Assets = ASSETS,
    pairs: Annotated[int, typer.Option(min=5, help="(model, key) pairs over all groups.")] = 10_000,
    searched: Annotated[int, typer.Option(min=1, help="Keys of the claimant who searches.")] = 10_000,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each fine-tune made for it.")] = 60,
    seed: Annotated[int, typer.Option(help="Of keys, models and trials.")] = 0,
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Are p-values uniform on models that know nothing of the key, and what does searching for a key give?

    With -o also a histogram, nulls.png.
    """
    need_assets(assets)
    from ...bench.audits import nulls as audit

    with progress("keys", quiet=quiet) as told:
        result, uniform = audit.run(assets, pairs=pairs, searched=searched, steps=steps, seed=seed, progress=told)
    deliver("nulls", result, audit.markdown(result), output, as_json)
    if output is not None:
        audit.histogram(uniform).savefig(output / "nulls.png", dpi=110)
