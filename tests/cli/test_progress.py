"""Progress: drawn where somebody watches, silent elsewhere, and never on stdout."""

import io

import pytest
from rich.console import Console

from aiao_diffusers.cli._output import Output
from aiao_diffusers.cli._progress import live, progress
from aiao_diffusers.cli.embed import losses


class Watched(Output):
    """A terminal that keeps what is drawn on it."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.__dict__["console"] = Console(file=self.file, force_terminal=True, width=100)

    def watched(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch):
    watched = Watched()
    monkeypatch.setattr("aiao_diffusers.cli._progress.out", watched)
    return watched.file


def test_a_bar_says_what_how_far_and_the_time_left(screen, capsys):
    with progress("embedding", 20) as step:
        step(5, "loss [b]1.234[/b]")
    text = screen.getvalue()
    assert "embedding" in text and "5/20" in text and "left" in text and "loss [b]1.234[/b]" in text
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("total", [None, 0])
def test_without_a_count_the_time_passed_is_shown(screen, total):
    with progress("reading", total) as step:
        step(3, "half")
    assert "reading" in screen.getvalue() and "0:00:00" in screen.getvalue() and "left" not in screen.getvalue()


def test_quiet_draws_nothing(screen):
    with progress("reading", 5, quiet=True) as step, live(lambda: "table", quiet=True):
        step(1)
    assert screen.getvalue() == ""


def test_where_stderr_is_no_terminal_nothing_is_drawn(capsys):
    with progress("reading", 5) as step, live(lambda: "table"):
        step(1, "note")
    assert capsys.readouterr() == ("", "")


def test_it_ends_with_the_block_also_when_that_fails(screen):
    with pytest.raises(ValueError), progress("reading", 5):
        raise ValueError
    with progress("again", 5):  # rich allows one live view at a time
        pass


def test_losses_name_the_bits_so_far():
    assert losses({"loss": 1.5, "resp": 0.25, "agreement": 0.875}) == "loss 1.500  bits 87.5%"
