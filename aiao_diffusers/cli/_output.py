"""The one place that prints: data to stdout, all else to stderr."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table


def write_whole(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


class Output:
    """Verbs for what a command says."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    def json(self, value: Any) -> None:
        """The one JSON value of `--json`, on stdout."""
        sys.stdout.write(json.dumps(value) + "\n")

    def text(self, value: str) -> None:
        """A result for people, on stdout."""
        sys.stdout.write(value + "\n")

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table for people, on stdout."""
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*row)
        Console(highlight=False).print(table)

    def note(self, text: str) -> None:
        """Progress, on stderr."""
        self._console.print(text, markup=False)

    def live(self, render: Callable[[], RenderableType]) -> Live:
        """A view on stderr, drawn anew four times a second while its `with` block runs; still where there is no terminal."""
        return Live(get_renderable=render, console=self._console, refresh_per_second=4, transient=True)

    def error(self, text: str) -> None:
        """What went wrong, on stderr."""
        sys.stderr.write(f"error: {text}\n")


out = Output()
