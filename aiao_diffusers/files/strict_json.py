"""JSON that may be hostile: bounded in size, no duplicate names, no NaN."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from ..errors import SuspectError, UnsafeFileError
from .mistaken import mistaken_for
from .text import short


MAX_JSON_BYTES = 16 * 2**20
MAX_DEPTH = 500
"""Of lists and objects in each other. Looked at only where another library has lifted Python's own limit."""
_SAFE_LIMIT = 10_000  # of Python's recursion: far below it the C stack is not full
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise UnsafeFileError(f"duplicate key {short(next(n for n in names if names.count(n) > 1))} in JSON")
    return result


def _reject_constant(name: str) -> Any:
    raise UnsafeFileError(f"{name} is not a JSON number")


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
    """JSON object from bytes; duplicate keys, NaN, bad UTF-8 and deep nesting raise UnsafeFileError."""
    if sys.getrecursionlimit() > _SAFE_LIMIT and _is_deep(raw):
        raise UnsafeFileError(f"{where} is not valid JSON: more than {MAX_DEPTH} lists or objects in each other")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_reject_constant)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        other = None if raw.lstrip().startswith((b"{", b"[")) else mistaken_for(raw)
        if other is not None:
            raise UnsafeFileError(f"{where} {other}") from None
        raise UnsafeFileError(f"{where} is not valid JSON: {short(str(error))}") from None
    if not isinstance(value, dict):
        raise UnsafeFileError(f"{where} holds a JSON {type(value).__name__}, expected an object")
    return value


def _is_deep(raw: bytes) -> bool:
    depth = 0
    for found in _BRACKETS.finditer(raw):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found[0], 0)
        if depth > MAX_DEPTH:
            return True
    return False


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most `MAX_JSON_BYTES`; SuspectError if absent, UnsafeFileError if hostile."""
    if not path.is_file():
        raise SuspectError(f"{path} does not exist")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UnsafeFileError(f"{path.name!r} has {path.stat().st_size} bytes; a config has at most {MAX_JSON_BYTES}")
    return parse_json(path.read_bytes(), path.name)
