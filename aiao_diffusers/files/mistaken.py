"""What a file is that was saved under the name of weights or of a config: a pointer, a web page, an error in JSON."""

import json
import re
from pathlib import Path

from .text import short


START_BYTES = 4096
"""Of a file, enough to tell what it is; pointers and error messages are shorter."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_MESSAGE_FIELDS = ("error", "message", "detail", "error_description")


def mistaken_for(start: bytes) -> str | None:
    """What a file that begins so really is, in words that follow its name, or None where nothing gives it away.

    Args:
        start: its first bytes, at least 8; the first `START_BYTES` tell more.
    """
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if len(text) >= 8 and _POINTER.startswith(text[: len(_POINTER)]):
        return "is a git-lfs pointer: run `git lfs pull`, or download the file itself"
    if re.match(rb"<(!doctype\s*h?|!docty|html|head|body|\?xml|!--)", text, re.IGNORECASE):
        return "is an HTML page: what was saved is the site's answer, not the file; download it again, with a token if need be"
    if text.startswith((b"{", b"[")) and text[1:].lstrip()[:1] in (b'"', b"{", b"}", b"'"):
        return f"is a JSON document: {_message_of(text)}"
    return None


def read_start(path: Path) -> bytes:
    """The first `START_BYTES` of a file."""
    with path.open("rb") as file:
        return file.read(START_BYTES)


def _message_of(text: bytes) -> str:
    """The error that a JSON answer tells, else how it begins."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    while isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        named = [value[name] for name in _MESSAGE_FIELDS if value.get(name)] if isinstance(value, dict) else []
        value = next(iter([*named, *(part for part in parts if isinstance(part, str | dict | list))]), None)
    return short(value if isinstance(value, str) else text.decode("utf-8", "replace"))
