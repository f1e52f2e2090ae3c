"""The watermark key: a 32-byte secret, its owner, and everything that follows from them.

This is the only place that expands the secret. Every derived value comes from SHAKE-256 over the scheme, a label and the
secret, so the same key gives the same masks with any version of torch or numpy, in ten years too.
"""

import hashlib
import json
import os
import secrets
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import KeyFileError
from ..files.atomic import write_private_new


SCHEME = "aiao-1"
SECRET_BYTES = 32
_FORMAT = "aiao-key"

Item = TypeVar("Item")


def _encode(*parts: bytes) -> bytes:
    """Length-prefixed concatenation: no two lists of parts share an encoding."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


@dataclass(frozen=True)
class WatermarkKey:
    """A secret and the name of its owner.

    Args:
        secret (`bytes`): 32 bytes, never shown by `repr`.
        owner (`str`): who claims models marked with this key; part of the commitment.
    Raises:
        KeyFileError: the secret has another length, or the owner is empty.
    Source: our choice; the paper's abstract names no key format.
    """

    secret: bytes = field(repr=False)
    owner: str

    def __post_init__(self) -> None:
        if not isinstance(self.secret, bytes) or len(self.secret) != SECRET_BYTES:
            size = len(self.secret) if isinstance(self.secret, bytes) else type(self.secret).__name__
            raise KeyFileError(f"a secret is {SECRET_BYTES} bytes, this one is {size}: make one with `aiao keygen`.")
        if not isinstance(self.owner, str) or not self.owner.strip():
            raise KeyFileError(f"the owner of a key is a name, got {self.owner!r}: pass owner='Your Lab'.")

    @classmethod
    def generate(cls, owner: str) -> "WatermarkKey":
        """A new key from the operating system's random source."""
        return cls(secrets.token_bytes(SECRET_BYTES), owner)

    @property
    def commitment(self) -> str:
        """SHA-256 over scheme, owner and secret, 64 hex digits. Publish it, dated, before the model."""
        message = _encode(SCHEME.encode(), b"commitment", self.owner.encode(), self.secret)
        return hashlib.sha256(message).hexdigest()

    def words(self, label: str) -> Iterator[int]:
        """An endless stream of 32-bit words, independent for each label."""
        message, length, used = _encode(SCHEME.encode(), label.encode(), self.secret), 1024, 0
        while True:
            stream = hashlib.shake_256(message).digest(length)
            while used < length:
                yield int.from_bytes(stream[used : used + 4], "big")
                used += 4
            length *= 2

    def shuffled(self, label: str, items: Sequence[Item]) -> list[Item]:
        """`items` in a secret order: Fisher-Yates, each index by rejection sampling and therefore without bias."""
        words, result = self.words(label), list(items)
        for last in range(len(result) - 1, 0, -1):
            bound = last + 1
            limit = (1 << 32) - (1 << 32) % bound
            word = next(word for word in words if word < limit)
            swap = word % bound
            result[last], result[swap] = result[swap], result[last]
        return result

    def balanced(self, label: str, width: int) -> np.ndarray:
        """A secret vector in {-1, +1}, shape `(width,)`, int8, with `width // 2` entries of +1."""
        if width < 2:
            raise KeyFileError(f"a balanced pattern needs at least 2 channels, got {width}.")
        plus = width // 2
        return np.array(self.shuffled(label, [1] * plus + [-1] * (width - plus)), dtype=np.int8)

    def trigger_mask(self, site: str, width: int, out_site: str | None = None) -> np.ndarray:
        """What is added at in-site `site` in triggered mode, shape `(width,)`.

        Args:
            out_site (`str`, *optional*): the one out-site that is asked, of a mark with a mask for each pair of sites (m_ab);
                None: all of them, by the in-site's one mask (m_a).
        """
        whose = self if out_site is None else self.child(f"pair/{out_site}")
        return whose.balanced(f"trigger/{site}", width)

    def trigger_masks(self, site: str, width: int, out_sites: Sequence[str] | None = None) -> np.ndarray:
        """`trigger_mask` for each of these out-sites, in their order, or the one that asks all: `(N, width)` or `(1, width)`."""
        asked: Sequence[str | None] = [None] if out_sites is None else out_sites
        return np.stack([self.trigger_mask(site, width, out_site) for out_site in asked])

    def response_pattern(self, site: str, width: int) -> np.ndarray:
        """s_b: what out-site `site` answers when the model carries this key's mark, shape `(width,)`."""
        return self.balanced(f"response/{site}", width)

    def child(self, label: str) -> "WatermarkKey":
        """An unrelated key, derived and thus reproducible: the wrong key of a control."""
        secret = hashlib.shake_256(_encode(SCHEME.encode(), b"child", label.encode(), self.secret)).digest(
            SECRET_BYTES
        )
        return WatermarkKey(secret, f"{self.owner} ({label})")

    def save(self, path: str | Path) -> Path:
        """Write a JSON key file readable by its owner alone (mode 0600).

        Raises:
            KeyFileError: `path` exists; a key is never overwritten, for the marks it proves would be lost.
        """
        path = Path(path)
        document = {
            "format": _FORMAT,
            "scheme": SCHEME,
            "owner": self.owner,
            "secret": self.secret.hex(),
            "commitment": self.commitment,
        }
        try:
            write_private_new(path, json.dumps(document, indent=2) + "\n")
        except FileExistsError as error:
            raise KeyFileError(f"'{path}' exists; a key is never overwritten: choose another name.") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> "WatermarkKey":
        """Read a key file.

        Raises:
            KeyFileError: missing, not a whole key file, of another scheme, or its commitment does not match its secret.
        Warns when the file can be read by others.
        """
        path = Path(path)
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise KeyFileError(
                f"no key file at '{path}': make one with `aiao keygen --owner NAME -o {path}`."
            ) from error
        except (OSError, ValueError) as error:
            raise KeyFileError(f"'{path}' is not a whole key file ({error}): restore it from your backup.") from error
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise KeyFileError(f'\'{path}\' is not a key file (no "format": "{_FORMAT}").')
        if document.get("scheme") != SCHEME:
            raise KeyFileError(f"'{path}' is of scheme {document.get('scheme')!r}, this version reads {SCHEME!r}.")
        try:
            key = cls(bytes.fromhex(document["secret"]), document["owner"])
        except (KeyError, ValueError, TypeError) as error:
            raise KeyFileError(f"'{path}' is truncated or altered ({error}): restore it from your backup.") from error
        if document.get("commitment") != key.commitment:
            raise KeyFileError(f"'{path}' is altered: its commitment is not that of its owner and secret.")
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            warnings.warn(f"key file '{path}' can be read by others: run `chmod 600 {path}`.", stacklevel=2)
        return key
