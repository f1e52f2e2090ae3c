"""No secret leaves: a key is searched for in everything that a push would send."""

import base64
from collections.abc import Iterator
from pathlib import Path

from ..errors import PushRefusedError
from ..mark.key import WatermarkKey


CHUNK, OVERLAP = 2**20, 64
_PRIVATE = {
    "a watermark key": (b'"aiao-key"', b'"secret"'),
    "a leaf of a key": (b'"in_site"', b'"secrets"'),
    "a private key": (b"PRIVATE KEY-----",),
    "an alignment reference": (b'"leaving.', b'"entering.'),
}
"""What a file is that holds all of these bytes."""
_WORDS = bytes(ord("a") if chr(i).isascii() and (chr(i).isalnum() or chr(i) in "+/-_") else 0 for i in range(256))
_RUN = b"a" * 20  # the shortest needle of text


def list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# What must not leave ------------------------------------------------------------------------------------------------


def needles(secret: bytes) -> tuple[list[bytes], list[bytes]]:
    """Byte strings that give a secret away: raw ones, and those of text (hex, base64 plain and URL-safe).

    Raw and hex: 16 bytes from offsets 0, 8 and 16, so that 24 bytes in a row always hold one. Base64: 15 bytes from offsets
    0-2 and 15-17, so that either half is found at any alignment.
    """
    pieces = [secret[start : start + 16] for start in (0, 8, 16)]
    blocks = [secret[start : start + 15] for start in (0, 1, 2, 15, 16, 17)]
    hexes = [text.encode() for piece in pieces for text in (piece.hex(), piece.hex().upper())]
    coded = [encode(block) for block in blocks for encode in (base64.b64encode, base64.urlsafe_b64encode)]
    return pieces, sorted({*hexes, *coded})


def check_secrets(folder: Path, key: WatermarkKey | None) -> None:
    """Refuse a folder in which any file, or any file's name, holds `key`'s secret, or that holds one of the owner's private files.

    Private are keys, leaves of keys, signers' keys and alignment references.

    Not seen: a secret that was compressed, encrypted or spelt in another way than raw, hex or base64.

    Raises:
        PushRefusedError: naming the file, never what was found in it.
    """
    raw, text = needles(key.secret) if key else ([], [])
    for path in list_files(folder):
        name, seen = path.relative_to(folder).as_posix(), set()
        for block in _blocks(path, name):
            # Weights are big and hardly ever hold a run of 20 letters and digits: one look saves all those for text.
            worded = text and _RUN in block.translate(_WORDS)
            if any(needle in block for needle in (*raw, *(text if worded else ()))):
                raise PushRefusedError(f"'{name}' holds the key's secret: remove it from '{folder}'.")
            seen |= {mark for marks in _PRIVATE.values() for mark in marks if mark in block}
        for what, marks in _PRIVATE.items():
            if seen.issuperset(marks):
                raise PushRefusedError(f"'{name}' holds {what}: move it out of '{folder}'.")


def _blocks(path: Path, name: str) -> Iterator[bytes]:
    """A file's name and bytes in blocks that overlap by more than any needle."""
    tail = name.encode("utf-8", "surrogateescape") + b"\n"
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield tail + chunk
            tail = (tail + chunk)[-OVERLAP:]
    yield tail
