"""`aiao bench embed`."""

from pathlib import Path
from typing import Annotated

import typer

from .._assets import ASSETS, need_assets
from .._options import AsJson, Quiet
from ._common import Assets, Folder, deliver, progress


def embed(
    assets: Assets = ASSETS,
    marked: Annotated[Path | None, typer.Option(help="Another marked folder, with its record.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder of a run of --suite: measure every mark that it made.")
    ] = None,
    suite: Annotated[str, typer.Option(help="Suite of --run.")] = "adaptive",
    images: Annotated[int, typer.Option(min=0, help="Pictures a set; 0: none.")] = 500,
    sampling: Annotated[int, typer.Option(min=1, help="Denoising steps a picture.")] = 20,
    wrong: Annotated[int, typer.Option(min=2, help="Wrong keys.")] = 200,
    starts: Annotated[int, typer.Option(min=1, help="Of trigger inversion.")] = 16,
    ascent: Annotated[int, typer.Option(min=0, help="Its steps.")] = 40,
    seed: Annotated[int, typer.Option(help="Of a single model; those of a run have their own.")] = 0,
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """What an embedded mark costs and gives away."""
    need_assets(assets)
    from ...bench.audits import marks

    settings = marks.Settings(images=images, sampling=sampling, wrong=wrong, starts=starts, ascent=ascent)
    with progress("measurements", quiet=quiet) as told:
        if run is not None:
            results = marks.measure_run(suite, run, assets, settings, told)
        else:
            folder, secret = marked or assets / "marked", key or assets / "demo.key"
            results = marks.measure_folder(folder, secret, assets, seed, settings, told)
    deliver("embed", results, marks.markdown(results), output, as_json)
