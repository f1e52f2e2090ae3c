"""A matplotlib figure, or a word on which extra to install."""

from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError


if TYPE_CHECKING:
    pass

BLUE, ORANGE, GREY = "#1f5f99", "#d1662a", "#888888"


def new_figure(width: float, height: float) -> Any:
    """An empty figure, tied to no window and no global state.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib, which is not installed: run `pip install 'aiao_diffusers[plots]'`."
        ) from error
    return Figure(figsize=(width, height), layout="constrained")
