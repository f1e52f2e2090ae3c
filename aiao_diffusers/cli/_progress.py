"""Progress on stderr while a verb works; nothing where nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ._output import out


if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import ProgressColumn

Step = Callable[..., None]  # `step(done, note="")`


@contextmanager
def progress(what: str, total: int | None = None, *, quiet: bool = False) -> Iterator[Step]:
    """One line that says how far the block is; it goes when the block ends.

    Args:
        what (`str`): what is being done.
        total (`int`, *optional*): steps in all, for a bar with the time left; None or 0: a spinner with the time passed.
        quiet (`bool`, defaults to False): show nothing, as where stderr is no terminal.
    Yields:
        `step(done, note="")`, to be called with the number of steps done and what to say beside them.
    """
    if quiet or not out.watched():
        yield lambda done, note="": None
        return
    from rich.progress import Progress

    # Only stderr is drawn on: what the block prints to stdout is data.
    with Progress(*_columns(bool(total)), console=out.console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(what, total=total or None, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


def _columns(counted: bool) -> "list[ProgressColumn]":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    what, note = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False)
    if not counted:
        return [SpinnerColumn(), what, TimeElapsedColumn(), note]
    return [what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"), note]


@contextmanager
def live(render: "Callable[[], RenderableType]", *, quiet: bool = False) -> Iterator[None]:
    """A view drawn anew four times a second while the block runs; it goes when the block ends."""
    if quiet or not out.watched():
        yield
        return
    from rich.live import Live

    view = {"get_renderable": render, "refresh_per_second": 4, "transient": True, "redirect_stdout": False}
    with Live(console=out.console, **view):  # type: ignore[arg-type]
        yield
