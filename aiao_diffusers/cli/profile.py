"""`aiao profile`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import OutputExistsError
from ._options import AsJson, Quiet
from ._output import out
from ._progress import progress


def profile(
    base: Annotated[str, typer.Argument(help="Model that was fine-tuned: folder or repository id.")],
    tuned: Annotated[list[str], typer.Argument(help="Fine-tunes or LoRA files; the profile is their average.")],
    weight_name: Annotated[str | None, typer.Option(help="Which file of a LoRA folder.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the change over depth to this new file.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Which layers do fine-tunes move (busy), which do they leave alone (lazy)?"""
    if plot is not None:
        from ..files.figure import new_figure

        # Before the reading, which may take minutes.
        if plot.exists():
            raise OutputExistsError(f"output '{plot}' exists: choose another file or remove it.")
        new_figure(1, 1)
    with progress("comparing the models", len(tuned), quiet=quiet or as_json) as step:
        from ..embedding.layer_profile import profile as run

        found = run(base, tuned, weight_name=weight_name, callback=lambda compared, _: step(compared))
    if plot is not None:
        found.plot().savefig(plot)
    if as_json:
        out.json(found.to_dict())
    else:
        out.text(found.to_markdown())
