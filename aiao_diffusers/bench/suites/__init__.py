"""The shipped suites, one YAML file each; importing this costs nothing, so that a command line can name them."""

from importlib import resources
from typing import Any


def shipped() -> dict[str, Any]:
    """The files of the shipped suites, by name."""
    files = resources.files(__name__).iterdir()
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}
