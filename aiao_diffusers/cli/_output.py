"""The one place that prints: data to stdout, all else to stderr."""

import json
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from rich.console import Console


class Output:
    """Verbs for what a command says."""

    debug = False  # set by --debug: errors show their traceback

    @cached_property
    def console(self) -> "Console":
        """Of stderr."""
        from rich.console import Console

        return Console(stderr=True, highlight=False)

    def watched(self) -> bool:
        """Whether somebody sits at stderr, for whom progress is drawn."""
        return sys.stderr.isatty() and self.console.is_terminal

    def json(self, value: Any) -> None:
        """The one JSON value of `--json`, on stdout."""
        sys.stdout.write(json.dumps(value) + "\n")

    def text(self, value: str) -> None:
        """A result for people, on stdout."""
        sys.stdout.write(value + "\n")

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table for people, on stdout."""
        from rich.console import Console
        from rich.table import Table

        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*row)
        Console(highlight=False).print(table)

    def note(self, text: str) -> None:
        """A remark, on stderr."""
        self.console.print(text, markup=False)

    def error(self, text: str) -> None:
        """What went wrong, as one line on stderr."""
        sys.stderr.write(f"error: {' '.join(text.splitlines())}\n")


out = Output()
