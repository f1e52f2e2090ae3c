"""What the verbs of `aiao bench` share: options, progress, and how a result is handed over."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ...files.atomic import write_text
from .._output import out
from .._progress import progress as counted


Assets = Annotated[Path, typer.Option(help="The example's folder.")]
Folder = Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the result as JSON and Markdown.")]


@contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr with the time left, where that is a terminal; lines of what was done stand above it, or alone. How many
    there are to do is known with the first that is done: a spinner until then.

    Yields:
        a `bench.progress.Progress`.
    """
    with ExitStack() as bars:
        of, step = 0, bars.enter_context(counted(what, quiet=quiet))

        def told(done: int, total: int, line: str) -> None:
            nonlocal of, step
            if total != of:
                bars.close()
                of, step = total, bars.enter_context(counted(what, total, quiet=quiet))
            step(done)
            if line and not quiet:
                out.note(line)

        yield told


def deliver(name: str, result: Any, text: str, output: Path | None, as_json: bool) -> None:
    """Write a result to `output` as `name.json` and `name.md`, and print it.

    Args:
        result: JSON-ready. text: the same for people.
    """
    if output is not None:
        write_text(output / f"{name}.json", json.dumps(result, indent=2) + "\n")
        write_text(output / f"{name}.md", text)
    if as_json:
        out.json(result)
    else:
        out.text(text.rstrip("\n"))
