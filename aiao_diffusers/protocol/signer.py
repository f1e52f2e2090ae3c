"""The key pair of whoever signs a report: Ed25519, its secret half in a PKCS#8 PEM file that nobody else can read.

    signer.key    the secret half, mode 0600; never overwritten
    signer.pub    the public half, for everybody who checks

It is no watermark key: it signs what somebody read, and opens no mark.

Source: RFC 8032 (Ed25519), RFC 8410 (its PEM); by `cryptography`.
"""

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, KeyFileError, MissingExtraError
from ..files.atomic import write_bytes, write_private_new


PUBLIC_ENDING = ".pub"
KEY_BYTES, SIGNATURE_BYTES = 32, 64
MAX_KEY_FILE = 2**14
"""Bytes; an Ed25519 key in PEM has about 120."""
_SECRET_MARK, _ENCRYPTED_MARK, _PUBLIC_MARK = (
    f"-----BEGIN {what}-----".encode() for what in ("PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "PUBLIC KEY")
)
_MAKE = "make one with `aiao keygen --signer -o signer.key`"


@dataclass(frozen=True)
class PublicKey:
    """The public half: says whether a signature holds.

    Args:
        raw (`bytes`): 32 bytes.
    Raises:
        KeyFileError: not 32 bytes.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if type(self.raw) is not bytes or len(self.raw) != KEY_BYTES:
            raise KeyFileError(f"a public Ed25519 key is {KEY_BYTES} bytes, got {self.raw!r:.80}: pass a signer.pub.")

    @property
    def keyid(self) -> str:
        """Its name in an envelope: SHA-256 of its DER (SubjectPublicKeyInfo), 64 hex digits, as `sha256sum` of the DER gives."""
        encodings = _library().serialization
        der = self._loaded().public_bytes(encodings.Encoding.DER, encodings.PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(der).hexdigest()

    def holds(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` (64 bytes) is this key's over `message`."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._loaded().verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def to_pem(self) -> bytes:
        """The bytes of `signer.pub`."""
        encodings = _library().serialization
        return self._loaded().public_bytes(encodings.Encoding.PEM, encodings.PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def from_pem(cls, content: bytes, where: str) -> "PublicKey":
        """Read `to_pem`.

        Raises:
            KeyFileError: no PEM of a public Ed25519 key; a secret key is refused by name.
        """
        library = _library()
        if content.lstrip().startswith((_SECRET_MARK, _ENCRYPTED_MARK)):
            raise KeyFileError(f"'{where}' is a secret key: keep it, and pass the signer.pub that lies beside it.")
        if not content.lstrip().startswith(_PUBLIC_MARK):
            raise KeyFileError(f"'{where}' is no public key in PEM ({_PUBLIC_MARK.decode()}): pass a signer.pub.")
        try:
            key = library.serialization.load_pem_public_key(content)
        except (ValueError, TypeError, library.UnsupportedAlgorithm) as error:
            raise KeyFileError(f"'{where}' is cut or altered: ask the signer for it again.") from error
        if not isinstance(key, library.ed25519.Ed25519PublicKey):
            raise KeyFileError(f"'{where}' is a key of another kind ({type(key).__name__}); signers use Ed25519.")
        return cls(key.public_bytes_raw())

    @classmethod
    def load(cls, path: str | Path) -> "PublicKey":
        """Read a `signer.pub`; KeyFileError as `from_pem`, and where there is none."""
        return cls.from_pem(_read(Path(path), secret=False), str(path))

    def _loaded(self) -> Any:
        return _library().ed25519.Ed25519PublicKey.from_public_bytes(self.raw)


@dataclass(frozen=True)
class Signer:
    """The secret half.

    Args:
        seed (`bytes`): 32 bytes, never shown by `repr`.
    Raises:
        KeyFileError: not 32 bytes.
    """

    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if type(self.seed) is not bytes or len(self.seed) != KEY_BYTES:
            raise KeyFileError(f"a secret Ed25519 key is {KEY_BYTES} bytes: {_MAKE}.")

    @classmethod
    def generate(cls) -> "Signer":
        """A new key pair from the operating system's random source."""
        return cls(_library().ed25519.Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def public(self) -> PublicKey:
        """The half that others check with."""
        return PublicKey(self._loaded().public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """A signature, 64 bytes; the same message gives the same one."""
        return self._loaded().sign(message)

    def save_new(self, path: str | Path) -> Path:
        """Write the secret half to `path`, readable by its owner alone, and the public half beside it as `.pub`.

        Returns:
            `Path`: of the public half.
        Raises:
            KeyFileError: one of the two exists. ConfigError: `path` itself ends in `.pub`.
        """
        path = Path(path)
        public = path.with_suffix(PUBLIC_ENDING)
        if path == public:
            raise ConfigError(f"'{path}' is the name of the public half: name the secret one, such as signer.key.")
        for name in (path, public):
            if name.exists():
                raise KeyFileError(f"'{name}' exists; a key is never overwritten: choose another name.")
        library = _library()
        encodings = library.serialization
        pem = self._loaded().private_bytes(
            encodings.Encoding.PEM, encodings.PrivateFormat.PKCS8, encodings.NoEncryption()
        )
        try:
            write_private_new(path, pem.decode())
        except FileExistsError as error:
            raise KeyFileError(f"'{path}' exists; a key is never overwritten: choose another name.") from error
        try:
            write_bytes(public, self.public.to_pem())
        except BaseException:
            path.unlink()  # made above, and of no use to anybody yet
            raise
        return public

    @classmethod
    def load(cls, path: str | Path) -> "Signer":
        """Read a `signer.key`.

        Raises:
            KeyFileError: missing, readable by others, encrypted, cut, of another kind, or no secret key at all.
        """
        library = _library()
        content = _read(Path(path), secret=True)
        start = content.lstrip()
        if start.startswith(_ENCRYPTED_MARK):
            raise KeyFileError(
                f"'{path}' is encrypted, and nothing here asks for a password: write it out with `openssl pkey -in {path} -out "
                "plain.key`, mode 0600."
            )
        if start.startswith(_PUBLIC_MARK):
            raise KeyFileError(f"'{path}' is a public key, which cannot sign: pass the signer.key beside it.")
        if not start.startswith(_SECRET_MARK):
            hint = "a watermark key, which does not sign" if start.startswith(b"{") else "no PKCS#8 key in PEM"
            raise KeyFileError(f"'{path}' is {hint}: {_MAKE}.")
        try:
            key = library.serialization.load_pem_private_key(content, None)
        except (ValueError, TypeError, library.UnsupportedAlgorithm) as error:
            raise KeyFileError(f"'{path}' is cut or altered: restore it from your backup.") from error
        if not isinstance(key, library.ed25519.Ed25519PrivateKey):
            raise KeyFileError(
                f"'{path}' is a key of another kind ({type(key).__name__}); reports take Ed25519: {_MAKE}."
            )
        return cls(key.private_bytes_raw())

    def _loaded(self) -> Any:
        return _library().ed25519.Ed25519PrivateKey.from_private_bytes(self.seed)


@dataclass(frozen=True)
class _Library:
    ed25519: Any
    serialization: Any
    UnsupportedAlgorithm: Any


def _library() -> _Library:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtraError(
            "signed reports need cryptography, which is not installed: run `pip install 'aiao_diffusers[evidence]'`."
        ) from error
    return _Library(ed25519, serialization, UnsupportedAlgorithm)


def _read(path: Path, *, secret: bool) -> bytes:
    """A key file; of a secret one the mode of the very file that is read."""
    wanted = _MAKE if secret else "pass the signer.pub that the signer published"
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if secret and os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o077:
                raise KeyFileError(
                    f"'{path}' can be read by others (mode {stat.S_IMODE(found.st_mode):04o}), who could sign in your name: "
                    f"run `chmod 600 {path}`; if somebody may have read it, make a new one."
                )
            content = file.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise KeyFileError(f"'{path}' cannot be read ({error.strerror or error}): {wanted}.") from error
    if len(content) > MAX_KEY_FILE:
        raise KeyFileError(f"'{path}' has more than {MAX_KEY_FILE} bytes, which no key has: {wanted}.")
    return content
