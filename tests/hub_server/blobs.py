"""Content-addressed bytes: one file per sha256 in a temporary folder, however many repositories share it.

`BlobStore.add` takes bytes, a path or a `Hollow`; `BlobStore.receive` takes an upload in chunks. A `Blob` knows its
sha256 (the id of large files), its git id (the id of small ones), its size, and reads any slice of itself.
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


CHUNK = 256 * 1024


@dataclass(frozen=True)
class Hollow:
    """A file of any size that needs no disk: `head`, then zeros up to `size` bytes. Its ids are made up."""

    size: int
    head: bytes = b""


Content = bytes | str | os.PathLike[str] | Hollow


@dataclass(frozen=True)
class Blob:
    """An immutable content of `size` bytes; `path` is None for a hollow one."""

    sha256: str
    git_oid: str
    size: int
    path: Path | None
    head: bytes = b""

    @property
    def pointer(self) -> bytes:
        """The text that git stores in place of a large file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    def slice(self, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield `length` bytes from `start` on (all the rest when None), at most `CHUNK` bytes at a time."""
        left = self.size - start if length is None else min(length, self.size - start)
        if self.path is None:
            while left > 0:
                chunk = self.head[start : start + CHUNK] or bytes(min(CHUNK, left))
                chunk = chunk[:left]
                yield chunk
                start, left = start + len(chunk), left - len(chunk)
            return
        with self.path.open("rb") as file:
            file.seek(start)
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                yield chunk
                left -= len(chunk)

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        return b"".join(self.slice(start, length))


def git_oid(kind: str, content: bytes) -> str:
    """The id that git gives to an object of this kind (`blob`, `tree`, `commit`)."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


class BlobStore:
    """Blobs under `root`. Thread-safe; a path is copied once and hashed once per (inode, size, mtime)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs: dict[str, Blob] = {}
        self._seen: dict[tuple[int, int, int, int], Blob] = {}
        self._lock = threading.Lock()
        for folder in ("objects", "incoming"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._blobs)

    def get(self, sha256: str) -> Blob | None:
        return self._blobs.get(sha256)

    def add(self, content: Content) -> Blob:
        """Store a content and return its blob.

        Raises:
            TypeError: `content` is none of bytes, path, `Hollow` (text has no encoding of its own: encode it).
        """
        if isinstance(content, Hollow):
            return self._add_hollow(content)
        if isinstance(content, bytes):
            return self.receive([content])
        if isinstance(content, str | os.PathLike):
            return self._add_path(Path(content))
        raise TypeError(f"content must be bytes, a path or Hollow, got {type(content).__name__}")

    def receive(self, chunks: Iterable[bytes]) -> Blob:
        """Store what `chunks` yield. Nothing stays behind when they raise."""
        sha256, size = hashlib.sha256(), 0
        handle, name = tempfile.mkstemp(dir=self.root / "incoming")
        incoming = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in chunks:
                    sha256.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
            return self._keep(incoming, sha256.hexdigest(), size)
        finally:
            incoming.unlink(missing_ok=True)

    def _keep(self, incoming: Path, sha256: str, size: int) -> Blob:
        with self._lock:
            if sha256 not in self._blobs:
                path = self.root / "objects" / sha256
                os.replace(incoming, path)
                self._blobs[sha256] = Blob(sha256, _git_oid_of_file(path, size), size, path)
            return self._blobs[sha256]

    def _add_path(self, path: Path) -> Blob:
        stat = path.stat()
        key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if key not in self._seen:
            with path.open("rb") as file:
                self._seen[key] = self.receive(iter(lambda: file.read(CHUNK), b""))
        return self._seen[key]

    def _add_hollow(self, content: Hollow) -> Blob:
        if len(content.head) > content.size:
            raise ValueError(f"the head has {len(content.head)} bytes, the file only {content.size}")
        name = b"hollow %d %s" % (content.size, content.head)
        blob = Blob(hashlib.sha256(name).hexdigest(), git_oid("blob", name), content.size, None, content.head)
        with self._lock:
            return self._blobs.setdefault(blob.sha256, blob)


def _git_oid_of_file(path: Path, size: int) -> str:
    sha1 = hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha1.update(chunk)
    return sha1.hexdigest()
