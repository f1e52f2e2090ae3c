"""`aiao bench leaves`."""

from pathlib import Path
from typing import Annotated

import typer

from .._assets import ASSETS, need_assets
from .._options import AsJson, Quiet
from ._common import Assets, Folder, deliver, progress


def leaves(
    assets: Assets = ASSETS,
    steps: Annotated[int, typer.Option(min=1, help="Of whoever trains an opened leaf away.")] = 100,
    lr: Annotated[float, typer.Option(help="Its learning rate.")] = 3e-4,
    marked: Annotated[Path | None, typer.Option(help="Another marked folder, of scheme aiao-2.")] = None,
    descendant: Annotated[list[Path] | None, typer.Option(help="A descendant of --marked; repeatable.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    seed: Annotated[int, typer.Option(help="Of readings and training.")] = 0,
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """What one opened leaf of a key proves, and what its holder can train away."""
    need_assets(assets)
    if descendant and marked is None:
        raise typer.BadParameter("--descendant goes with --marked: name the model that it descends from.")
    from ...bench.audits import leaves as audit

    which = audit.Models(marked, tuple(descendant or ()), key)
    with progress("models", quiet=quiet) as told:
        result = audit.run(assets, steps=steps, lr=lr, models=which, seed=seed, progress=told)
    deliver("leaves", result, audit.markdown(result), output, as_json)
