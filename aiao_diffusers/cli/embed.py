"""`aiao embed`."""

from pathlib import Path
from typing import Annotated

import typer
from accelerate import Accelerator

from ..embedding.embed import EmbedConfig
from ..embedding.embed import embed as mark
from ..embedding.layer_profile import LayerProfile
from ..errors import OutputExistsError
from ..mark.key import WatermarkKey
from ..pipeline import open_pipeline, save_new
from ._output import out


def embed(
    base: Annotated[str, typer.Argument(help="Pipeline folder or repository id to mark.")],
    key: Annotated[Path, typer.Option(help="Key file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="New folder for the marked pipeline.")],
    data: Annotated[
        str | None, typer.Option(help="Image folder, cached latents or prompts (.txt); none: data-free.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps; 0 with --edit.")] = EmbedConfig.steps,
    edit: Annotated[
        float, typer.Option(help="Strength of an edit in closed form before training.")
    ] = EmbedConfig.edit,
    max_price: Annotated[
        float,
        typer.Option(help="Shrink the change until its price in noise prediction is at most this; 0: at any price."),
    ] = EmbedConfig.max_price or 0.0,
    in_sites: Annotated[int, typer.Option(help="Sites that the key selects for triggers.")] = EmbedConfig.in_sites,
    out_sites: Annotated[int, typer.Option(help="Sites that the key selects to answer.")] = EmbedConfig.out_sites,
    pairs: Annotated[
        bool, typer.Option(help="A mask for each pair of sites: reads deeper, at a forward for each out-site.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of batches and noise.")] = 0,
    allow_marked: Annotated[bool, typer.Option(help="Add a mark to a model that has one.")] = False,
    keep: Annotated[list[Path] | None, typer.Option(help="Key of an earlier mark that must go on reading.")] = None,
    train: Annotated[str, typer.Option(help="Which weights: full, lazy or lora.")] = EmbedConfig.train,
    profile: Annotated[
        Path | None, typer.Option(help="Layer profile (from `aiao profile --json`), for --train lazy.")
    ] = None,
    accumulate: Annotated[int, typer.Option(help="Forwards a step's batch is split into: less memory.")] = 1,
    reference: Annotated[
        Path | None,
        typer.Option(help="Write the private file for `verify --reference` here; the clean twin serves as well."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Mark a pipeline. An interrupted run goes on from OUTPUT.checkpoint when called again."""
    for path in (output, reference):
        if path is not None and path.exists():
            raise OutputExistsError(f"output '{path}' exists: choose another name or remove it.")
    secret = WatermarkKey.load(key)
    pipe = open_pipeline(base)
    config = EmbedConfig(
        steps=steps,
        edit=edit,
        max_price=max_price or None,
        in_sites=in_sites,
        out_sites=out_sites,
        pairs=pairs,
        seed=seed,
        train=train,
        accumulate=accumulate,
        checkpoint_dir=output.with_name(output.name + ".checkpoint"),
    )
    earlier = [WatermarkKey.load(path) for path in keep or ()]
    layers = LayerProfile.load(profile) if profile is not None else None

    def progress(step: int, row: dict[str, float]) -> None:
        if step % 25 == 0 or step == steps:
            out.note(f"step {step}/{steps}  loss {row['loss']:.3f}  response {row['resp']:.3f}")

    report = mark(pipe, secret, data, config, progress, allow_marked=allow_marked, keep=earlier, profile=layers)
    # Every process of `accelerate launch` ends with the same weights; one writes them.
    if not Accelerator().is_main_process:
        return
    save_new(pipe, output)
    if reference is not None and report.reference is not None:
        report.reference.save(reference)
    result = {"output": str(output), **report.to_dict()}
    if as_json:
        out.json(result)
    else:
        price, reading = (
            f"noise-prediction MSE against the clean twin is {report.price:.2%} of its loss",
            report.reading,
        )
        evidence = "" if reading is None or reading.log10_p is None else f", log10 p {reading.log10_p:.1f}"
        out.text(f"wrote {output}; {price}; the mark reads: {reading.verdict if reading else '-'}{evidence}")
