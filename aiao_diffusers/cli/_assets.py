"""Where commands that need the shipped models look for them."""

from pathlib import Path

from ..errors import SuspectError


ASSETS = Path("examples/emoji_diffusion")


def need_assets(assets: Path) -> None:
    """Raises SuspectError when `assets` does not hold the shipped models."""
    if not (assets / "marked").is_dir():
        raise SuspectError(f"no shipped model in '{assets}': run in a clone of the repository or pass --assets.")
