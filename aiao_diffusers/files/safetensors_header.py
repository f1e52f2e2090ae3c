"""Files that may be hostile: safetensors headers, JSON and names in a folder, checked before anything is used.

Nothing is ever unpickled. A file that fails a step is not read further, so a hostile one costs at most its header.
"""

import math
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import NotTestableError, SuspectError, UnsafeFileError
from .mistaken import START_BYTES, mistaken_for
from .paths import PICKLE_STARTS, refuse_pickle
from .strict_json import parse_json
from .text import short


MAX_HEADER_BYTES = 32 * 2**20
"""A 12B model's header is about .2 MiB; kohya adds a few MiB of training tags."""
MAX_TENSOR_BYTES = 128 * 2**30
MAX_TENSORS = 100_000
MAX_RANK = 8
PIECE = 2**18
"""Values looked at in one go: no second copy of a large tensor."""

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
ITEM_BYTES = {name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """One header entry: safetensors dtype name, shape, and the byte span within the data section."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked safetensors header: every tensor's place is known and the file holds nothing else."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    file_bytes: int


def _entry(name: str, entry: object, where: str) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UnsafeFileError(f"{where}: tensor {short(name)} needs exactly dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise UnsafeFileError(f"{where}: tensor {short(name)} has unknown dtype {short(dtype)}")
    # bool is an int in Python, hence `type(...) is int`.
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(type(n) is int and n >= 0 for n in shape):
        raise UnsafeFileError(f"{where}: tensor {short(name)} has bad shape {short(shape)}")
    if not isinstance(span, list) or len(span) != 2 or not all(type(n) is int and n >= 0 for n in span):
        raise UnsafeFileError(f"{where}: tensor {short(name)} has bad data_offsets {short(span)}")
    # Python integers do not wrap, so shapes that multiply past 2^64 are simply unequal here.
    if math.prod(shape) * ITEM_BYTES[dtype] != span[1] - span[0]:
        raise UnsafeFileError(
            f"{where}: tensor {short(name)} of {dtype} {short(shape)} does not fill its span {short(span)}"
        )
    return TensorInfo(dtype, tuple(shape), span[0], span[1])


def read_header(path: str | Path, *, max_bytes: int = MAX_TENSOR_BYTES) -> Header:
    """Read and check a safetensors header; no tensor byte is touched.

    Args:
        path: a `.safetensors` file.
        max_bytes: largest data section accepted, default 128 GiB.
    Returns:
        `Header` in file order. The spans tile the data section exactly: no gap, no overlap, no trailing bytes.
    Raises:
        SuspectError: no such file. UnsafeFileError: a pickle, another suffix, or any flaw of the header.
    """
    path = Path(path)
    if not path.is_file():
        raise SuspectError(f"{path} is not a file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(START_BYTES)
        length = header_length(path, start, size)
        file.seek(8)
        raw = file.read(length)
    return parse_header(path, raw, size, max_bytes=max_bytes)


def header_length(path: Path, prefix: bytes, size: int) -> int:
    """Bytes of the header that follow a file's first 8; `path` names the file, which may lie elsewhere.

    Args:
        prefix: the first 8 bytes; more, where they are at hand, tell better what another file is. size: of the whole
            file, in bytes.
    Raises:
        UnsafeFileError: not a safetensors file by name or start, or a header that is cut or beyond `MAX_HEADER_BYTES`.
    """
    refuse_pickle(path)
    where = path.name
    if path.suffix.lower() != ".safetensors":
        raise UnsafeFileError(f"{where!r} is not a .safetensors file; only these are read")
    if len(prefix) < 8:
        raise UnsafeFileError(f"{where!r} has {size} bytes; a safetensors file has at least 10")
    (length,) = struct.unpack("<Q", prefix[:8])
    if length > size - 8:
        # Only here: the first byte of a sound file may well be a brace, but no text is a length that fits one.
        other = mistaken_for(prefix)
        if other is not None:
            raise UnsafeFileError(f"{where!r} {other}")
        if prefix.startswith(PICKLE_STARTS) and size > 8:
            raise UnsafeFileError(f"{where!r} is a zip or pickle named .safetensors; it was not read")
        raise UnsafeFileError(f"{where!r}: header of {length} bytes runs past the end ({size} bytes); truncated?")
    if length > MAX_HEADER_BYTES:
        raise UnsafeFileError(f"{where!r}: header of {length} bytes, at most {MAX_HEADER_BYTES} are accepted")
    return int(length)


def parse_header(path: Path, raw: bytes, size: int, *, max_bytes: int = MAX_TENSOR_BYTES) -> Header:
    """`read_header` on the header's bytes alone: `raw`, whose length `header_length` told, of a file of `size` bytes."""
    where, length = path.name, len(raw)
    if not raw.startswith(b"{"):
        raise UnsafeFileError(f"{where!r}: the header does not start with an opening brace")
    table = parse_json(raw, where)
    metadata = table.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # some writers say null
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UnsafeFileError(f"{where!r}: __metadata__ must map text to text")
    if len(table) > MAX_TENSORS:
        raise UnsafeFileError(f"{where!r} lists {len(table)} tensors, at most {MAX_TENSORS} are accepted")
    tensors = {}
    for name, entry in table.items():
        if not name.isprintable():
            raise UnsafeFileError(f"{where!r}: tensor name {short(name)} is not printable text")
        tensors[name] = _entry(name, entry, where)
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            flaw = "overlaps the tensor before it" if info.start < position else "leaves a gap before it"
            raise UnsafeFileError(f"{where!r}: tensor {short(name)} {flaw} (starts at {info.start}, not {position})")
        position = info.end
    if position != size - 8 - length:
        raise UnsafeFileError(f"{where!r}: tensors span {position} bytes, the file holds {size - 8 - length}")
    if position > max_bytes:
        raise UnsafeFileError(f"{where!r} holds {position} bytes of tensors, at most {max_bytes} are accepted")
    return Header(path, tensors, metadata, size)


def stream(header: Header, names: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a checked file one at a time, in file order, each in memory of its own.

    Read by the checked offsets rather than mapped: memory stays at what the caller keeps, and a file that changes after
    its header was checked gives other numbers, never another layout.

    Args:
        header: from `read_header`. names: those wanted; None means all.
    Raises:
        UnsafeFileError: the file became shorter or unreadable since its header was checked.
    """
    try:
        with header.path.open("rb") as file:
            base = 8 + struct.unpack("<Q", file.read(8))[0]
            if header.file_bytes - base != max((t.end for t in header.tensors.values()), default=0):
                raise UnsafeFileError(f"{header.path.name!r} changed while it was read")
            for name, info in sorted(header.tensors.items(), key=lambda item: item[1].start):
                if names is not None and name not in names:
                    continue
                tensor = torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype])
                if tensor.numel():
                    file.seek(base + info.start)
                    if file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data) != info.end - info.start:
                        raise UnsafeFileError(f"{header.path.name!r} became shorter while it was read")
                yield name, tensor
    except (OSError, struct.error) as error:
        raise UnsafeFileError(f"{header.path.name!r} could not be read: {short(str(error))}") from error


def load_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file on the CPU, in their stored dtype, after `read_header` has passed.

    Raises:
        SuspectError, UnsafeFileError: as `read_header` and `stream`.
    """
    return dict(stream(read_header(path)))


def check_finite(tensors: Mapping[str, torch.Tensor], what: str = "the weights") -> None:
    """Raise NotTestableError naming the keys that hold NaN or Inf; integers and booleans pass.

    Denormals are finite and pass: they are exact numbers that some hardware flushes, not a flaw of the file.
    """
    bad = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():
            # By pieces, so that no copy of a large tensor is made; float8 has no kernel of either.
            pieces = tensor.detach().reshape(-1).split(PIECE)
            narrow = tensor.is_floating_point() and tensor.element_size() == 1
            if not all(_finite(piece.float() if narrow else piece) for piece in pieces):
                bad.append(name)
    if bad:
        shown = ", ".join(short(name) for name in bad[:3])
        raise NotTestableError(f"{what}: {len(bad)} of {len(tensors)} tensors hold NaN or Inf, first {shown}")


def _finite(values: torch.Tensor) -> bool:
    # A sum is eight times faster than looking at each value, and NaN or Inf never leaves it; finite values may overflow it.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())
