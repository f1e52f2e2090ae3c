"""`aiao scan`: the live table."""

import io
import time
from dataclasses import replace

from rich.console import Console

from aiao_diffusers.cli.scan import _Live
from aiao_diffusers.scanning.log import ScanRow


def row(name: str, log10_p: float | None = None, **fields: object) -> ScanRow:
    verdict = "not_testable" if log10_p is None else "verified" if log10_p <= -6 else "not_verified"
    blank = ScanRow(f"u/{name}", "c" * 40, "w.safetensors", "adapter", ("acme/sd",), "tree", verdict, log10_p=log10_p)
    return replace(blank, **fields)  # type: ignore[arg-type]


def test_the_live_table_shows_strangers_words_as_they_are() -> None:
    view, console = _Live("acme/sd"), Console(width=200, file=io.StringIO(), record=True)
    view.add((row("a", -7.0), row("b", reason="[red]x[/red] [link=http://evil]y[/link]")), 2, 3)
    console.print(view.table())
    text = console.export_text()
    assert "2 of 3 repositories; 1 not_testable, 1 verified" in text and "[red]x[/red]" in text


def test_the_live_table_shows_the_lineage_where_it_is_asked() -> None:
    view, console = _Live("acme/sd"), Console(width=200, file=io.StringIO(), record=True)
    view.add((row("a", -7.0),), 1, 3)
    assert [str(column.header) for column in view.table().columns][3] == "distance"
    told = {"verdict": "verified", "log10_p": -20.0}
    view.add(
        (row("b", lineage_reading=told), row("c", lineage_reading={"verdict": "not_testable", "log10_p": None})), 3, 3
    )
    console.print(view.table())
    assert "verified -20.0" in (text := console.export_text()) and "lineage" in text


def test_the_live_table_tells_the_time_left() -> None:
    view = _Live("acme/sd")
    assert view.left() == ""  # before the first repository there is no pace
    view.started = time.monotonic() - 60
    view.add((row("a", -7.0),), 2, 130)
    assert view.left().startswith("; 1:04:0") and view.left().endswith(" left")
    view.done = 130
    assert view.left() == ""
