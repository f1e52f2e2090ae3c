"""`aiao verify`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import OutputExistsError
from ..files.figure import new_figure
from ..mark.key import WatermarkKey
from ..verification.plan import ReadingPlan
from ..verification.verify import verify as run
from ._output import out, write_whole


def verify(
    suspect: Annotated[str, typer.Argument(help="Folder, .safetensors file or repository id.")],
    key: Annotated[Path, typer.Option(help="Key file.")],
    base: Annotated[str | None, typer.Option(help="Model that a LoRA is used with.")] = None,
    record: Annotated[
        str | None, typer.Option(help="Folder with the watermark record, if not beside the suspect.")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option("--control", "--clean-base", help="An unmarked model that is asked the same; may be repeated."),
    ] = None,
    weight_name: Annotated[str | None, typer.Option(help="Which file of a LoRA folder.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the repository.")] = None,
    alpha: Annotated[float, typer.Option(help="Significance.")] = 1e-6,
    trials: Annotated[int, typer.Option(help="Monte Carlo trials a look, at most.")] = 8,
    all_trials: Annotated[bool, typer.Option(help="Run all plain trials, for the verification rate.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the trials.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write the report with plots to this new HTML file.")] = None,
    clean_twin: Annotated[
        str | None,
        typer.Option(
            "--clean-twin",
            "--twin",
            help="Your unmarked original: read what the suspect answers beyond it; brings merges back.",
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="For disguised suspects: the private file from embedding, or the clean twin.")
    ] = None,
    fast: Annotated[bool, typer.Option(help="End a hopeless reading after four trials, as `aiao scan` does.")] = False,
    healing: Annotated[bool, typer.Option(help="At last, fine-tune a copy for a moment and look again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read a mark. Exit code 0: verified; 3: ran and did not verify."""
    if html is not None:
        # Before the reading, which may take minutes.
        if html.exists():
            raise OutputExistsError(f"output '{html}' exists: choose another name or remove it.")
        new_figure(1, 1)
    fields = {"alpha": alpha, "trials": trials, "seed": seed, "early_stop": not all_trials}
    report = run(
        suspect,
        WatermarkKey.load(key),
        base,
        record,
        clean_twin=clean_twin,
        plan=ReadingPlan.fast(**fields) if fast else ReadingPlan.thorough(**fields),
        controls=control,
        weight_name=weight_name,
        revision=revision,
        reference=reference,
        healing=healing,
    )
    if html is not None:
        write_whole(html, report.to_html())
    if as_json:
        out.json(report.to_dict())
    else:
        out.text(report.to_markdown())
    raise typer.Exit(0 if report.verified else 3)
