"""`aiao bench memory`."""

from typing import Annotated

import typer

from .._options import AsJson, Quiet
from ._common import Folder, deliver, progress


def memory(
    base: Annotated[str, typer.Argument(help="Pipeline folder or repository id.")],
    latents: Annotated[str, typer.Option(help="File of cached latents to train on.")],
    train: Annotated[
        list[str] | None, typer.Option(help="Which weights: full, lazy or lora; repeatable. Default: each.")
    ] = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable. Default: 1 and 8.")] = None,
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Peak memory of embedding beside ordinary fine-tuning of the same parameters (Linux)."""
    from ...bench.audits import memory as audit
    from ...embedding.config import TRAIN

    with progress("comparisons", quiet=quiet) as told:
        rows = audit.compare(base, latents, train or TRAIN, batch_size or (1, 8), progress=told)
    deliver("memory", rows, audit.markdown(rows), output, as_json)
