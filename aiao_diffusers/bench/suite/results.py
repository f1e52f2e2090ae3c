"""The results of a suite: an output folder with a lock, and one append-only file of JSON lines."""

import json
import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...errors import ResultsError


FORMAT = 1  # raised when old and new lines can no longer stand in one table; a deeper reading names itself (`look`)
FILE = "results.jsonl"
PACKAGES = ("aiao_diffusers", "torch", "diffusers", "transformers", "peft")


def versions() -> dict[str, str]:
    """Of everything that a number may depend on."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Exclusive use of an output folder; the lock goes with the process, also when it is killed.

    Raises:
        ResultsError: another run has it, or it cannot be made.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ResultsError(f"'{folder}' is in use by another run: wait for it or choose another folder.") from error
    except OSError as error:
        raise ResultsError(f"'{folder}' cannot be written to ({error}): choose another folder.") from error
    try:
        yield
    finally:
        lock.release()


def append(file: Path, row: dict[str, Any]) -> None:
    """One line more, on the disk before this returns; after a failure the file is as it was.

    Raises:
        ResultsError: the line could not be written, on a full disk for instance.
    """
    line = json.dumps(_finite(row), allow_nan=False).encode() + b"\n"
    size = file.stat().st_size if file.exists() else 0
    try:
        with open(file, "ab", buffering=0) as out:
            if out.write(line) != len(line):
                raise OSError("only part of the line was written")
            os.fsync(out.fileno())
    except OSError as error:
        if file.is_file():
            os.truncate(file, size)
        raise ResultsError(f"'{file}' cannot be written ({error}): make room and run again, it goes on.") from error


def _finite(value: Any) -> Any:
    """NaN and infinities as None: JSON has neither, and a ruined model's losses are often one of them."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ResultsError(f"no results at '{path}' ({error}): run a suite first.") from error
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is not a whole line
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
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.truncate(file, whole)
    return {row["id"] for row in read(file) if row.get("verdict") != "failed"}
