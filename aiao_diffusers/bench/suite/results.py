"""The results of a suite: rows of one append-only log (`files.jsonl`), of this version alone."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...errors import ResultsError
from ...files.jsonl import cut_torn_line, read_lines


FORMAT = 1  # raised when old and new lines can no longer stand in one table; a deeper reading names itself (`look`)
FILE = "results.jsonl"
PACKAGES = ("aiao_diffusers", "torch", "diffusers", "transformers", "peft")


def versions() -> dict[str, str]:
    """Of everything that a number may depend on."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def read(file: str | Path, *, any_version: bool = False) -> list[dict[str, Any]]:
    """All whole lines of a results file; a last line that a killed run left unfinished is not one.

    Args:
        any_version (`bool`, defaults to False): take lines of another format or package version too.
    Raises:
        ResultsError: missing, a broken line within, or lines of another version.
    """
    path = Path(file)
    path = path / FILE if path.is_dir() else path
    try:
        lines = read_lines(path)
    except OSError as error:
        raise ResultsError(f"no results at '{path}' ({error}): run a suite first.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            made_by = row["format"], row["versions"]["aiao_diffusers"]
            row["id"], row["kind"]  # what tables know it by
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"line {number} of '{path}' is no result ({error}): the file was altered.") from error
        here = FORMAT, version("aiao_diffusers")
        if made_by != here and not any_version:
            raise ResultsError(
                f"line {number} of '{path}' is of format {made_by[0]}, version {made_by[1]}; this is format {here[0]}, "
                f"version {here[1]}: measure anew, or ask for any version."
            )
        rows.append(row)
    return rows


def finished(folder: Path) -> set[str]:
    """Ids of the cells that are done, failed ones not among them; cuts off a line that a killed run left unfinished.

    Raises:
        ResultsError: as for `read`: a run never continues another version's file.
    """
    file = folder / FILE
    if not file.exists():
        return set()
    cut_torn_line(file)
    return {row["id"] for row in read(file) if row.get("verdict") != "failed"}
