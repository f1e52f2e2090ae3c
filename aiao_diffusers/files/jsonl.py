"""A log of JSON lines in a folder that one process at a time may write to; it survives any stop, and the next run goes on.

A line is on the disk before `append_line` returns, so a killed process leaves whole lines and at most one torn one at the end.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import ResultsError


LOCK = ".lock"


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Exclusive use of an output folder, which is made where it is missing; the lock goes with the process, also when it is killed.

    Raises:
        ResultsError: another run has it, or it cannot be made.
    """
    lock, made = FileLock(folder / LOCK, timeout=0), not folder.exists()
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
        if made and [path.name for path in folder.iterdir()] == [LOCK]:  # the run was refused before it wrote anything
            (folder / LOCK).unlink()
            folder.rmdir()


def append_line(file: Path, value: dict[str, Any]) -> None:
    """One line more, on the disk before this returns; after a failure the file is as it was. NaN and infinities become null.

    Raises:
        ResultsError: the line could not be written, on a full disk for instance.
    """
    line = json.dumps(_finite(value), allow_nan=False).encode() + b"\n"
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


def read_lines(file: Path) -> list[bytes]:
    """The whole lines of a file, as they stand; what follows the last newline is not one.

    Raises:
        OSError: it cannot be read.
    """
    return file.read_bytes().split(b"\n")[:-1]


def cut_torn_line(file: Path) -> None:
    """Take away what a killed process left after the last newline, so that the next line begins at its start."""
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.truncate(file, whole)


def _finite(value: Any) -> Any:
    """NaN and infinities as None: JSON has neither, and a ruined model's losses are often one of them."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
