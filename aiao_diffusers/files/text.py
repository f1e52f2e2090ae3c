"""Text of strangers for messages, logs and tables, and Markdown tables themselves."""

from collections.abc import Iterable, Sequence


def short(value: object, limit: int = 120) -> str:
    """`repr` cut to `limit` characters: a hostile key of a megabyte must not become the error message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def table_row(cells: Iterable[str]) -> str:
    """A row of a Markdown table; what a cell holds is not escaped."""
    return "| " + " | ".join(cells) + " |"


def table_head(columns: Sequence[str]) -> str:
    """The two lines over a Markdown table's rows, for tables that are printed as they grow."""
    return table_row(columns) + "\n" + "|---" * len(columns) + "|"


def markdown_table(columns: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, without a newline at its end."""
    return "\n".join([table_head(columns), *map(table_row, rows)])
