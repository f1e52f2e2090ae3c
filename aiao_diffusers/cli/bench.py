"""`aiao bench`: measure what the documents state."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..files.atomic import write_text
from ._assets import ASSETS, need_assets
from ._output import out


app = typer.Typer(no_args_is_help=True, help=__doc__)

Assets = Annotated[Path, typer.Option(help="The example's folder.")]
Folder = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder for the result: JSON, Markdown, of nulls a picture.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("verify-cost")
def verify_cost(
    assets: Assets = ASSETS,
    geometry: Annotated[bool, typer.Option(help="Run the SD 1.5 geometry too (4 GB of memory, minutes).")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Paired timings of verdict and sampling.")] = 3,
    steps: Annotated[int, typer.Option(min=1, max=20, help="Guided steps timed a round; 20 are extrapolated.")] = 2,
    reduced: Annotated[int, typer.Option(min=8, help="Latent size of the reduced probe.")] = 16,
    latency_rounds: Annotated[int, typer.Option(min=1, help="Paired forwards of the shipped model, unarmed.")] = 101,
    half: Annotated[bool, typer.Option(help="The geometry in bfloat16, not float32.")] = True,
    output: Folder = None,
    as_json: AsJson = False,
) -> None:
    """What a verdict costs: FLOPs, wall clock, memory, unarmed latency."""
    import torch

    from ..bench.audits import cost

    need_assets(assets)
    # First, for its memory is counted from a fresh interpreter.
    large = None
    if geometry:
        dtype = torch.bfloat16 if half else torch.float32
        large = cost.large(dtype=dtype, rounds=rounds, steps=steps, reduced=reduced, latency_rounds=rounds)
    result = {"shipped": cost.shipped(assets, latency_rounds=latency_rounds)}
    result["geometry"] = cost.geometry_flops(reduced=reduced)
    if large is not None:
        result["large"] = large
    _say("verify-cost", result, cost.markdown(result), output, as_json)


@app.command("nulls")
def nulls(
    assets: Assets = ASSETS,
    pairs: Annotated[int, typer.Option(min=5, help="(model, key) pairs over all groups.")] = 10_000,
    searched: Annotated[int, typer.Option(min=1, help="Keys of the claimant who searches.")] = 10_000,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each fine-tune made for it.")] = 60,
    seed: Annotated[int, typer.Option(help="Of keys, models and trials.")] = 0,
    output: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Are p-values uniform on models that know nothing of the key, and what does searching for a key give?"""
    from ..bench.audits import nulls as bench

    need_assets(assets)
    result, uniform = bench.run(assets, pairs=pairs, searched=searched, steps=steps, seed=seed, note=out.note)
    _say("nulls", result, bench.markdown(result), output, as_json)
    if output is not None:
        bench.histogram(uniform).savefig(output / "nulls.png", dpi=110)


PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command("run", context_settings=PASSED_ON)
def run(context: typer.Context) -> None:
    """Run what is missing of a suite: attacks at their strengths, seeds and controls (`run --help`)."""
    _suite("run", context)


@app.command("table", context_settings=PASSED_ON)
def table(context: typer.Context) -> None:
    """Markdown and curves from a suite's results (`table --help`)."""
    _suite("table", context)


@app.command("list", context_settings=PASSED_ON)
def list_attacks(context: typer.Context) -> None:
    """Attacks with their hyper-parameters, and methods."""
    _suite("list", context)


@app.command("disguise", context_settings=PASSED_ON)
def disguise(context: typer.Context) -> None:
    """Read through function-preserving disguises, with controls (`disguise --help`)."""
    from ..bench.audits.disguises import main

    main(context.args, context.command_path)


@app.command("ranks", context_settings=PASSED_ON)
def ranks(context: typer.Context) -> None:
    """Hits against rank scores on attacked models (`ranks --help`)."""
    from ..bench.audits.rank_scores import main

    main(context.args, context.command_path)


@app.command("formats", context_settings=PASSED_ON)
def formats(context: typer.Context) -> None:
    """Every format of adapters and checkpoints: does it load, exactly, and what is the verdict (`formats --help`)."""
    from ..bench.audits.formats import main

    raise typer.Exit(main(context.args, context.command_path))


@app.command("memory", context_settings=PASSED_ON)
def memory(context: typer.Context) -> None:
    """Peak memory of embedding beside ordinary fine-tuning (`memory --help`)."""
    from ..bench.audits.memory import main

    main(context.args, context.command_path)


@app.command("embed", context_settings=PASSED_ON)
def embed(context: typer.Context) -> None:
    """What an embedded mark costs and gives away (`embed --help`)."""
    from ..bench.audits.marks import main

    main(context.args, context.command_path)


@app.command("inversion", context_settings=PASSED_ON)
def inversion(context: typer.Context) -> None:
    """How near trigger inversion comes to the true masks (`inversion --help`)."""
    from ..bench.audits.inversion import main

    main(context.args, context.command_path)


def _suite(verb: str, context: typer.Context) -> None:
    from ..bench.__main__ import main

    raise typer.Exit(main([verb, *context.args], context.command_path.removesuffix(f" {verb}")))


def _say(name: str, result: dict[str, Any], text: str, output: Path | None, as_json: bool) -> None:
    if output is not None:
        write_text(output / f"{name}.json", json.dumps(result, indent=2) + "\n")
        write_text(output / f"{name}.md", text)
    if as_json:
        out.json(result)
    else:
        out.text(text)
