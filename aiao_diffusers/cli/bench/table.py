"""`aiao bench table`."""

from pathlib import Path
from typing import Annotated

import typer

from .._options import AsJson
from .._output import out


# As `bench.suite.tables.SECTIONS` has them, which is slow to import.
SECTIONS = ("verdicts", "looks", "compare", "wins", "reference", "provenance")


def table(
    results: Annotated[list[Path] | None, typer.Argument(help="Results files or folders.")] = None,
    section: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SECTIONS)}; repeatable.")] = None,
    update: Annotated[
        Path | None,
        typer.Option(help="Rewrite the generated parts of this Markdown file, from the results that it names."),
    ] = None,
    curves: Annotated[Path | None, typer.Option(help="Write curves to this folder.")] = None,
    any_version: Annotated[bool, typer.Option("--any-version", help="Accept results of another version.")] = False,
    as_json: AsJson = False,
) -> None:
    """Markdown and curves from a suite's results."""
    if update and not curves and (results or section):
        raise typer.BadParameter("--update takes results and sections from the document: leave out the others.")
    from ...bench.suite.curves import curves as draw
    from ...bench.suite.tables import load
    from ...bench.suite.tables import table as markdown
    from ...bench.suite.tables import update as rewrite

    text, files = None, results or []
    pictures = draw(load(files, any_version=any_version), curves) if curves else []
    sections = rewrite(update, any_version=any_version) if update else []
    if not update and (section or not curves):
        text = markdown(files, sections=section or (), any_version=any_version)
    for path in pictures:
        out.note(f"wrote {path}")
    if update:
        out.note(f"wrote {sections}")
    if as_json:
        out.json({"markdown": text, "curves": [str(path) for path in pictures], "updated": sections})
    elif text is not None:
        out.text(text.rstrip("\n"))
