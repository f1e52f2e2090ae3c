"""`aiao bench fuzz`."""

from time import perf_counter
from typing import Annotated

import typer

from .._options import AsJson, Quiet
from .._output import out
from ._common import Folder, deliver, progress


def fuzz(
    rounds: Annotated[int, typer.Option(min=1, help="Mutated files.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of formats and edits.")] = 2026,
    start: Annotated[int, typer.Option(min=0, help="Rounds to pass over.")] = 0,
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Hostile files: every format, mutated at random, through the loaders."""
    from ...bench.audits import fuzz as audit

    began = perf_counter()
    try:
        with progress("rounds", quiet=quiet) as told:
            found = audit.fuzz(rounds, seed, start, progress=told)
    except audit.FuzzFailure as failure:
        out.error(f"{failure} {' '.join(getattr(failure, '__notes__', ()))}".rstrip())
        raise typer.Exit(1) from failure
    result = {**found.to_dict(), "seed": seed, "start": start, "seconds": round(perf_counter() - began)}
    deliver("fuzz", result, found.markdown(), output, as_json)
