"""`aiao embed`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..errors import ConfigError, OutputExistsError
from ._options import (
    AsJson,
    InSites,
    Lineage,
    LineageOnly,
    OutSites,
    PipelineOptions,
    Quiet,
    parse_pipeline_options,
    refuse_with_lineage_only,
    typed,
)
from ._output import out
from ._progress import progress


if TYPE_CHECKING:
    from ..embedding.config import EmbedConfig
    from ..embedding.report import EmbedReport

Data = Annotated[str | None, typer.Option(help="Image folder, cached latents or prompts (.txt); none: data-free.")]
MaxPrice = Annotated[
    float,
    typer.Option(help="Shrink the change until its price in noise prediction is at most this; 0: at any price."),
]
Edit = Annotated[float, typer.Option(help="Strength of an edit in closed form before training.")]
Pairs = Annotated[
    bool, typer.Option(help="A mask for each pair of sites: reads deeper, at a forward for each out-site.")
]
Keep = Annotated[list[Path] | None, typer.Option(help="Key of an earlier mark that must go on reading.")]
Profile = Annotated[Path | None, typer.Option(help="Layer profile (from `aiao profile --json`), for --train lazy.")]
Accumulate = Annotated[int, typer.Option(help="Forwards a step's batch is split into: less memory.")]
Commitment = Annotated[
    Path | None, typer.Option(help="Commitment with its beacon (from `aiao commit`): a mark of scheme aiao-2.")
]
Reference = Annotated[
    Path | None,
    typer.Option(help="Write the private file for `verify --reference` here; the clean twin serves as well."),
]


Denoiser = Annotated[
    str | None,
    typer.Option(help="Of a pipeline with two, mark the one of this name alone (transformer_2); default: both."),
]


def embed(
    context: typer.Context,
    base: Annotated[str, typer.Argument(help="Pipeline folder or repository id to mark.")],
    key: Annotated[Path, typer.Option(help="Key file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="New folder for the marked pipeline.")],
    data: Data = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps; 0 with --edit.")] = 500,
    edit: Edit = 0.0,
    lineage: Lineage = 0.25,
    lineage_only: LineageOnly = False,
    max_price: MaxPrice = 0.0045,
    in_sites: InSites = None,
    out_sites: OutSites = None,
    pairs: Pairs = False,
    seed: Annotated[int, typer.Option(help="Seed of batches and noise.")] = 0,
    allow_marked: Annotated[bool, typer.Option(help="Add a mark to a model that has one.")] = False,
    keep: Keep = None,
    train: Annotated[str, typer.Option(help="Which weights: full, lazy or lora.")] = "full",
    profile: Profile = None,
    accumulate: Accumulate = 1,
    reference: Reference = None,
    commitment: Commitment = None,
    denoiser: Denoiser = None,
    pipeline_option: PipelineOptions = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Mark a pipeline. An interrupted run goes on from OUTPUT.checkpoint when called again."""
    for path in (output, reference):
        if path is not None and path.exists():
            raise OutputExistsError(f"output '{path}' exists: choose another name or remove it.")
    if commitment is not None and reference is not None:
        raise ConfigError("--reference is written by `aiao commit` already: use the file beside the commitment.")
    from accelerate import Accelerator

    from ..embedding.config import EmbedConfig

    recipe: dict[str, Any] = {"steps": steps, "edit": edit, "max_price": max_price or None, "seed": seed}
    recipe |= {"in_sites": in_sites, "out_sites": out_sites, "pairs": pairs, "train": train, "accumulate": accumulate}
    recipe |= {"lineage": lineage, "lineage_only": lineage_only}
    given = typed(context)
    if commitment is not None:
        recipe |= {name: value for name, value in _committed(commitment).items() if name not in given}
    if recipe["lineage_only"]:
        refuse_with_lineage_only(given)
    options = parse_pipeline_options(pipeline_option or ())
    config = EmbedConfig(**recipe, checkpoint_dir=output.with_name(output.name + ".checkpoint"))
    # Every process of `accelerate launch` ends with the same weights; one writes them, and one speaks.
    first = Accelerator().is_main_process
    inputs = _Inputs(base, key, data, keep or (), profile, commitment, denoiser, options)
    pipe, report = _mark(inputs, config, allow_marked, quiet=quiet or as_json or not first)
    if first:
        _write(pipe, report, output, reference, as_json)


def _committed(commitment: Path) -> dict[str, Any]:
    """What a commitment fixes, so that nobody types it twice."""
    from ..embedding.commit import committed_fields
    from ..protocol.commitment import Commitment

    return committed_fields(Commitment.load(commitment))


class _Inputs(NamedTuple):
    """What the verb is pointed at, as it was typed."""

    base: str
    key: Path
    data: str | None
    keep: Sequence[Path]
    profile: Path | None
    commitment: Path | None
    denoiser: str | None
    options: dict[str, Any]


def _mark(inputs: _Inputs, config: "EmbedConfig", allow_marked: bool, *, quiet: bool) -> "tuple[Any, EmbedReport]":
    """The marked pipeline and its report."""
    from ..embedding.embed import embed as run
    from ..embedding.layer_profile import LayerProfile
    from ..mark.key import WatermarkKey
    from ..pipeline import open_pipeline

    key, keep = WatermarkKey.load(inputs.key), [WatermarkKey.load(path) for path in inputs.keep]
    layers = LayerProfile.load(inputs.profile) if inputs.profile is not None else None
    with progress(f"loading {inputs.base}", quiet=quiet):
        pipe = open_pipeline(inputs.base)
    with progress("embedding", config.steps, quiet=quiet) as step:

        def tell(number: int, row: dict[str, float]) -> None:
            step(number, losses(row))

        report = run(
            pipe,
            key,
            inputs.data,
            config,
            tell,
            allow_marked=allow_marked,
            keep=keep,
            profile=layers,
            commitment=inputs.commitment,
            denoiser=inputs.denoiser,
            pipeline_options=inputs.options or None,
        )
    return pipe, report


def losses(row: dict[str, float]) -> str:
    """One step's row beside the bar."""
    return f"loss {row['loss']:.3f}  bits {row['agreement']:.1%}"


def _write(pipe: Any, report: "EmbedReport", output: Path, reference: Path | None, as_json: bool) -> None:
    from ..pipeline import save_new

    save_new(pipe, output)
    if reference is not None and report.reference is not None:
        report.reference.save(reference)
    if as_json:
        out.json({"output": str(output), **report.to_dict()})
        return
    out.text(f"wrote {output}; {_in_words(report)}")
    for name, other in report.others.items():
        out.text(f"{name}: {_in_words(other)}")
    carried = report.lineage.in_words if report.lineage else f"left out: {report.lineage_left_out}"
    out.text(f"what LoRAs inherit: {carried}")


def _in_words(report: "EmbedReport") -> str:
    """Price and strength of a mark, as the key's owner reads it."""
    reading = report.reading
    evidence = "" if reading is None or reading.log10_p is None else f", log10 p {reading.log10_p:.1f}"
    return (
        f"prediction MSE against the clean twin is {report.price:.2%} of its loss; the mark reads: "
        f"{reading.verdict if reading else '-'}{evidence}"
    )
