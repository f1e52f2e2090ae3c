"""`aiao bench run`."""

from pathlib import Path
from typing import Annotated

import typer

from ...bench.suites import shipped
from .._assets import ASSETS
from .._options import AsJson, Quiet
from .._output import out
from ._common import progress


def run(
    config: Annotated[
        str | None, typer.Argument(help=f"A YAML file, or one of {', '.join(sorted(shipped()))}.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The quick suite.")] = False,
    output: Annotated[
        Path,
        typer.Option("-o", "--out", "--output", help="Folder of results and marks; a second call goes on from it."),
    ] = Path("runs/bench"),
    assets: Annotated[Path, typer.Option(help="Folder that the suite's paths start from.")] = ASSETS,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub repository, in place of the suite's models.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder of pictures, in place of the suite's data.")] = None,
    clip: Annotated[
        str | None, typer.Option(help="Folder or Hub repository, in place of the suite's CLIP model.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run what is missing of a suite: attacks at their strengths, seeds and controls. --json prints its rows."""
    if quick == (config is not None):
        raise typer.BadParameter("name a suite or pass --quick, one of the two.")
    from ...bench.suite.runner import describe, run_suite, unexpected

    with progress("cells", quiet=quiet) as told:
        rows = run_suite(
            config or "quick",
            output,
            assets=assets,
            model=model,
            data=data,
            clip=clip,
            jobs=jobs,
            progress=told,
        )
    if as_json:
        out.json(rows)
    bad = unexpected(rows)
    for row in bad:
        out.note(f"unexpected: {describe(row)}")
    if bad:
        raise typer.Exit(1)
