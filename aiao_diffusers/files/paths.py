"""Names in a folder that may be hostile: inside it, no links out of it, no pickles."""

import re
from pathlib import Path

from ..errors import SuspectError, UnsafeFileError
from .text import short


PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of what torch.save writes, a zip since 1.6, and of bare pickles."""


TRAINER_STATE = re.compile(
    r"(optimizer|scheduler|scaler|sampler|dl_state|rng_state|random_states|training_args)[\w.-]*"
)
"""What trainers leave beside a model and nobody loads as one; that these are pickles is no reason to refuse a folder."""


def refuse_pickle(path: Path) -> None:
    """Raise UnsafeFileError where the suffix is that of a pickle; loading one runs whatever code it holds."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise UnsafeFileError(
            f"{path.name!r} is a pickle: reading it would run code that its author chose. Ask for the same weights as "
            f".safetensors (the author: safetensors.torch.save_file, or the Space safetensors/convert on the Hub)."
        )


def inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`, refused where it leads out of it.

    A plain file name is required. Links may point within the folder, or, in a Hub cache
    (`models--x--y/snapshots/<commit>/…`), to the `blobs` of the same repository, where the Hub client keeps the bytes.

    Raises:
        UnsafeFileError: a path trick. SuspectError: the file is missing.
    """
    if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name or Path(name).is_absolute():
        raise UnsafeFileError(f"{short(name)} is not a plain file name; it could lead out of {folder.name!r}")
    path = folder / name
    if not path.is_file():
        raise SuspectError(f"{folder} names the file {short(name)}, which is missing")
    roots = [folder.resolve()]
    for parent in (folder.absolute(), *folder.absolute().parents):
        if parent.parent.name == "snapshots" and parent.parent.parent.name.startswith("models--"):
            roots.append((parent.parent.parent / "blobs").resolve())
    if not any(path.resolve().is_relative_to(root) for root in roots):
        raise UnsafeFileError(f"{short(name)} in {folder.name!r} is a link out of its folder")
    return path


def below(folder: Path, name: str) -> Path:
    """`inside`, for a name that a caller typed: it may lie in subfolders of `folder`, as `first/adapter.safetensors`.

    Raises:
        UnsafeFileError: a path trick. SuspectError: the file or a folder on its way is missing.
    """
    *parents, last = name.split("/")
    for part in parents:
        if part in {"", ".", ".."} or "\\" in part or "\0" in part:
            raise UnsafeFileError(f"{short(name)} could lead out of {folder.name!r}")
        if not (folder / part).is_dir():
            raise SuspectError(f"{folder} holds no folder {short(part)}")
        if not (folder / part).resolve().is_relative_to(folder.resolve()):
            raise UnsafeFileError(f"{short(part)} in {folder.name!r} is a link out of its folder")
        folder = folder / part
    return inside(folder, last)


def list_weight_files(folder: str | Path) -> tuple[Path, ...]:
    """The `.safetensors` files directly in a folder, sorted by name; links out of the folder raise UnsafeFileError.

    Raises:
        UnsafeFileError: the folder holds pickles only. SuspectError: it holds no weights at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SuspectError(f"{folder} is not a folder")
    names = sorted(p.name for p in folder.iterdir() if p.is_file() or p.is_symlink())
    files = tuple(inside(folder, n) for n in names if n.lower().endswith(".safetensors"))
    if not files:
        for name in names:
            if not TRAINER_STATE.fullmatch(name):
                refuse_pickle(Path(name))
        deeper = sorted(p.name for p in folder.iterdir() if p.is_dir() and any(p.glob("*.safetensors")))
        hint = f"; its folders {', '.join(deeper[:5])} do: name one of them" if deeper else ""
        raise SuspectError(f"{folder} holds no .safetensors file{hint}")
    return files
