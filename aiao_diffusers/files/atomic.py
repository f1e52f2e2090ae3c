"""Files and folders that appear whole or not at all: written under a temporary name beside the target, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_whole(path: Path, *, ending: str = "partial") -> Iterator[Path]:
    """A temporary name for the block to write to; it replaces `path` at the block's end and is removed when the block fails.

    Args:
        path: of the file; folders on its way are made.
        ending (defaults to `partial`): of the temporary name `.<name>.<ending>`; one a process where several may write at once.

    Example:
        >>> with write_whole(path) as partial:
        ...     save_file(tensors, partial)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{ending}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_whole` of a text in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """`write_whole` of bytes."""
    with write_whole(path) as partial:
        partial.write_bytes(content)


def write_private_new(path: Path, text: str) -> None:
    """A text file that its owner alone can read (mode 0600) and that never takes another file's place.

    Raises:
        FileExistsError: `path` exists; it is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp creates with mode 0600: there is no moment at which others could read the text.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        _link_new(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _link_new(temporary: str, path: Path) -> None:
    """Give a file the name `path`, unless the name is taken."""
    try:
        # link, unlike rename, fails where the target exists.
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # FAT and some mounted drives know no links: there the name is claimed first, then the file put in its place.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            os.replace(temporary, path)
        except OSError:
            path.unlink(missing_ok=True)
            raise


@contextmanager
def write_folder(target: Path, *, prefix: str | None = None) -> Iterator[Path]:
    """A temporary folder for the block to fill; it becomes `target` at the block's end and is removed when the block fails.

    Args:
        target: must not exist (or be empty) when the block ends; folders on its way are made.
        prefix (*optional*): of the temporary name; default: `.<name>.`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix or f".{target.name}."))
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
