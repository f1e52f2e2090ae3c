"""What the verbs of `aiao bench` share."""

import io

from rich.console import Console

from aiao_diffusers.cli._output import Output
from aiao_diffusers.cli.bench._common import progress


def test_progress_without_a_terminal_says_lines_alone(capsys):
    for quiet, said in ((False, "first row"), (True, "")):
        with progress("rows", quiet=quiet) as told:
            told(1, 2, "first row")
            told(2, 2, "")
        captured = capsys.readouterr()
        assert captured.err.strip() == said and not captured.out


def test_progress_on_a_terminal_counts_and_says_lines(monkeypatch):
    file = io.StringIO()
    screen = Output()
    screen.__dict__["console"] = Console(file=file, force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(Output, "watched", lambda self: True)
    for name in ("_progress.out", "bench._common.out"):
        monkeypatch.setattr(f"aiao_diffusers.cli.{name}", screen)
    with progress("rows") as told:
        told(1, 4, "first [b]row[/b]")
        told(2, 4, "")
    text = file.getvalue()
    assert "rows" in text and "2/4" in text and "left" in text and "first [b]row[/b]" in text
