"""`aiao probe`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import OutputExistsError
from ._options import AsJson, Quiet
from ._output import out
from ._progress import progress


Prompts = Annotated[
    Path | None,
    typer.Option(help="Your own prompts: .txt, one a line, or a .json list. None for a pipeline that takes none."),
]


def probe(
    pipeline: Annotated[
        str, typer.Argument(help="Pipeline folder or repository id: the suspect's, or of its family.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="New file for `verify --probes`.")],
    prompts: Prompts = None,
    seed: Annotated[int, typer.Option(help="Seed of the pipeline's noise: yours, not the claimant's.")] = 0,
    count: Annotated[int, typer.Option(help="Inputs of a pipeline that takes no prompts.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of sampling.")] = 12,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Capture a judge's own inputs: what a pipeline gives its denoiser for your prompts and seed."""
    if output.exists():
        raise OutputExistsError(f"output '{output}' exists: choose another file or remove it.")
    with progress(f"running {pipeline}", quiet=quiet or as_json):
        from ..denoiser.probes import capture_probes
        from ..pipeline import open_pipeline

        pipe = open_pipeline(pipeline, trusted=False)
        made = capture_probes(pipe, prompts, seed, count=count, steps=steps, name=pipeline)
    made.save(output)
    told = made.describe()
    if as_json:
        out.json({"output": str(output), **told})
    else:
        out.text(f"wrote {output}: {told['inputs']} inputs of {pipeline}, seed {seed}, SHA-256 {told['sha256']}")
