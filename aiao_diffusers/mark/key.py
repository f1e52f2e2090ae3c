"""The watermark key: a 32-byte secret, its owner, and everything that follows from them.

This is the only place that expands the secret. Every derived value comes from SHAKE-256, so the same key gives the same masks
with any version of torch or numpy, in ten years too.

- Scheme `aiao-1`: over the scheme, a label and the secret. p is exact if key and record were fixed before any ancestor of the
  suspect was public, which only their owner knows.
- Scheme `aiao-2`: over the scheme, a label, that label's own leaf secret and the beacon, public randomness drawn after record and
  secret were committed to. Masks and patterns are then uniform, however record and secret were made. One leaf can be shown to a
  judge without the others (`protocol/leaves`).
"""

import hashlib
import json
import os
import secrets
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import KeyFileError
from ..files.atomic import write_private_new


SCHEME, BOUND_SCHEME = "aiao-1", "aiao-2"
SCHEMES = (SCHEME, BOUND_SCHEME)
SECRET_BYTES = BEACON_BYTES = 32
_FORMAT = "aiao-key"

Item = TypeVar("Item")


def encode(*parts: bytes) -> bytes:
    """Length-prefixed concatenation: no two lists of parts share an encoding."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def trigger_label(site: str, out_site: str | None = None) -> str:
    """Of the mask at in-site `site`: its one, or that which asks `out_site` alone (not for child keys of `aiao-1`)."""
    return f"trigger/{site}" if out_site is None else f"trigger/{site}/for/{out_site}"


def response_label(site: str) -> str:
    """Of the pattern of out-site `site`."""
    return f"response/{site}"


@dataclass(frozen=True)
class WatermarkKey:
    """A secret and the name of its owner.

    Args:
        secret (`bytes`): 32 bytes, never shown by `repr`.
        owner (`str`): who claims models marked with this key; part of the commitment.
        beacon (`bytes`, *optional*): 32 bytes of public randomness, of one commitment (`drawn_with`); None: scheme `aiao-1`. Key
            files hold none, for a record says its own.
    Raises:
        KeyFileError: the secret or the beacon has another length, or the owner is empty.
    Source: our choice; the paper's abstract names no key format.
    """

    secret: bytes = field(repr=False)
    owner: str
    beacon: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.secret, bytes) or len(self.secret) != SECRET_BYTES:
            size = len(self.secret) if isinstance(self.secret, bytes) else type(self.secret).__name__
            raise KeyFileError(f"a secret is {SECRET_BYTES} bytes, this one is {size}: make one with `aiao keygen`.")
        if not isinstance(self.owner, str) or not self.owner.strip():
            raise KeyFileError(f"the owner of a key is a name, got {self.owner!r}: pass owner='Your Lab'.")
        if self.beacon is not None and (not isinstance(self.beacon, bytes) or len(self.beacon) != BEACON_BYTES):
            raise KeyFileError(f"a beacon is {BEACON_BYTES} bytes, got {self.beacon!r:.80}: take it from the record.")

    @classmethod
    def generate(cls, owner: str) -> "WatermarkKey":
        """A new key from the operating system's random source."""
        return cls(secrets.token_bytes(SECRET_BYTES), owner)

    @property
    def commitment(self) -> str:
        """Of scheme `aiao-1`: SHA-256 over scheme, owner and secret, 64 hex digits. It binds no record (see `fingerprint`)."""
        message = encode(SCHEME.encode(), b"commitment", self.owner.encode(), self.secret)
        return hashlib.sha256(message).hexdigest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over owner and secret, 64 hex digits: how a commitment of scheme `aiao-2` names this key."""
        message = encode(BOUND_SCHEME.encode(), b"key", self.owner.encode(), self.secret)
        return hashlib.sha256(message).hexdigest()

    @property
    def identity(self) -> str:
        """What tells two expansions apart, 64 hex digits: the commitment, or fingerprint and beacon together."""
        if self.beacon is None:
            return self.commitment
        return hashlib.sha256(encode(b"identity", self.fingerprint.encode(), self.beacon)).hexdigest()

    def drawn_with(self, beacon: bytes | None) -> "WatermarkKey":
        """The same key under this beacon; None: as scheme `aiao-1` expands it."""
        return self if beacon == self.beacon else replace(self, beacon=beacon)

    def leaf_secret(self, label: str) -> bytes:
        """32 bytes that expand this label and tell of no other one, whatever the beacon."""
        message = encode(BOUND_SCHEME.encode(), b"leaf", label.encode(), self.secret)
        return hashlib.shake_256(message).digest(SECRET_BYTES)

    def words(self, label: str) -> Iterator[int]:
        """An endless stream of 32-bit words, independent for each label."""
        if self.beacon is None:
            message = encode(SCHEME.encode(), label.encode(), self.secret)
        else:
            message = encode(BOUND_SCHEME.encode(), label.encode(), self.leaf_secret(label), self.beacon)
        length, used = 1024, 0
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
        if self.beacon is not None:
            return self.balanced(trigger_label(site, out_site), width)
        whose = self if out_site is None else self.child(f"pair/{out_site}")
        return whose.balanced(trigger_label(site), width)

    def trigger_masks(self, site: str, width: int, out_sites: Sequence[str] | None = None) -> np.ndarray:
        """`trigger_mask` for each of these out-sites, in their order, or the one that asks all: `(N, width)` or `(1, width)`."""
        asked: Sequence[str | None] = [None] if out_sites is None else out_sites
        return np.stack([self.trigger_mask(site, width, out_site) for out_site in asked])

    def response_pattern(self, site: str, width: int) -> np.ndarray:
        """s_b: what out-site `site` answers when the model carries this key's mark, shape `(width,)`."""
        return self.balanced(response_label(site), width)

    def child(self, label: str) -> "WatermarkKey":
        """An unrelated key, derived and thus reproducible: the wrong key of a control."""
        message = encode(SCHEME.encode(), b"child", label.encode(), self.secret)
        secret = hashlib.shake_256(message).digest(SECRET_BYTES)
        return WatermarkKey(secret, f"{self.owner} ({label})", self.beacon)

    def save(self, path: str | Path) -> Path:
        """Write a JSON key file readable by its owner alone (mode 0600).

        Raises:
            KeyFileError: `path` exists; a key is never overwritten, for the marks it proves would be lost.
        """
        path = Path(path)
        document = {
            "format": _FORMAT,
            "scheme": SCHEME,  # of the commitment below; the secret itself serves every scheme
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
