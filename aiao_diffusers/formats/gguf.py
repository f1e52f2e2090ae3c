"""Denoisers in GGUF files: the header as safetensors' reader gives it, and the weights unpacked.

Packings work on rows of 32 or 256 numbers. ComfyUI-GGUF stores a weight whose rows are shorter, as all of a U-Net's
convolutions, in rows of 256, and its true shape in a field of the file; without the field the stored shape is the true one.
"""

import importlib.util
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..errors import NotTestableError, UnsafeFileError
from ..files.mistaken import mistaken_for, read_start
from ..files.safetensors_header import Header, TensorInfo
from ..files.text import short
from .upstream import UPSTREAM_ERRORS


SHAPE_FIELD = "comfy.gguf.orig_shape."
MAX_ENTRIES = 2**16
"""Of all arrays in the fields together; a shape has four, and lists of words belong to language models. Our choice."""
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a field's value by GGUF's number of its type, strings and arrays aside."""


def read_gguf_header(path: Path) -> Header:
    """A GGUF file's tensors: `dtype` is GGML's name of the packing, shapes are unpacked, spans count from the file's start.

    Raises:
        NotTestableError: the package gguf is missing. UnsafeFileError: no sound GGUF file.
    """
    other = mistaken_for(read_start(path))  # first: what is no GGUF file asks for no package
    if other is not None:
        raise UnsafeFileError(f"{path.name!r} {other}")
    if importlib.util.find_spec("gguf") is None:
        raise NotTestableError(f"{path.name!r} is a GGUF file: install the package gguf to read it")
    import gguf

    try:
        _check_counts(path)
        reader = gguf.GGUFReader(path)
        tensors = {}
        for t in reader.tensors:
            shape = tuple(int(n) for n in reversed(t.shape))  # GGUF counts dimensions from the fastest
            shape = _true_shape(reader, t.name, shape)
            start = int(t.data_offset)
            tensors[t.name] = TensorInfo(t.tensor_type.name, shape, start, start + int(t.n_bytes))
        return Header(path, tensors, {}, path.stat().st_size)
    except UPSTREAM_ERRORS as error:
        raise UnsafeFileError(f"{path.name!r} is no sound GGUF file: {short(str(error))}") from error


class _Fields:
    """Walks over the fields of a GGUF file, whose values nobody keeps."""

    def __init__(self, file: BinaryIO, size: int, order: str) -> None:
        self.file, self.size, self.order, self.left = file, size, order, MAX_ENTRIES

    def number(self, form: str) -> int:
        """The next number; `form` as `struct` has it."""
        form = self.order + form
        value: int = struct.unpack(form, self.file.read(struct.calcsize(form)))[0]
        return value

    def skip(self, count: int) -> None:
        """Pass over bytes that must be there."""
        if count > self.size - self.file.tell():
            raise ValueError("a field is longer than the file")
        self.file.seek(count, 1)

    def value(self, kind: int, depth: int = 0) -> None:
        """Pass over a value."""
        if kind == _STRING:
            self.skip(self.number("Q"))
        elif kind != _ARRAY:
            self.skip(_SIZES[kind])
        else:
            of, count = self.number("I"), self.number("Q")
            self.left -= count
            if self.left < 0 or depth > 3:
                raise ValueError(f"its fields list more than {MAX_ENTRIES} entries")
            for _ in range(count):
                self.value(of, depth + 1)


def _check_counts(path: Path) -> None:
    """Bound what the fields list: the library believes a count, walks on behind the file's end, and keeps an object for each."""
    with path.open("rb") as file:
        magic, version = struct.unpack("<4sI", file.read(8))
        if magic != b"GGUF":
            raise ValueError("it does not start as one")
        fields = _Fields(
            file, path.stat().st_size, "<" if version & 0xFFFF else ">"
        )  # as the library tells them apart
        fields.number("Q")
        for _ in range(fields.number("Q")):
            fields.skip(fields.number("Q"))
            fields.value(fields.number("I"))


def _true_shape(reader: Any, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a tensor has in the model, in the order of torch."""
    field = reader.get_field(SHAPE_FIELD + name)
    if field is None:
        return stored
    shape = tuple(int(field.parts[index][0]) for index in field.data)
    if min(shape, default=0) < 0 or math.prod(shape) != math.prod(stored):
        raise UnsafeFileError(
            f"{short(SHAPE_FIELD + name)} is {short(shape)}, the tensor is stored as {short(stored)}"
        )
    return shape


def unpack(header: Header, names: Mapping[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors named, under their new names, in float32, one at a time.

    The reader's own arrays are mapped, and would stay in memory: the file is read by the header's spans instead.

    Raises:
        NotTestableError: a packing that the package gguf does not undo, or a file that became shorter.
    """
    import gguf

    path = header.path
    try:
        for key, name in names.items():
            info = header.tensors[key]
            raw = np.fromfile(path, np.uint8, info.end - info.start, offset=info.start)
            packing = gguf.GGMLQuantizationType[info.dtype]
            # Row by row, or the library takes a tensor's worth of memory more.
            block, size = gguf.GGML_QUANT_SIZES[packing]
            raw = raw.reshape(
                -1, size * (info.shape[-1] // block if info.shape and info.shape[-1] % block == 0 else 1)
            )
            values = gguf.dequantize(raw, packing)
            yield name, torch.from_numpy(np.array(values, np.float32).reshape(info.shape))
    except UPSTREAM_ERRORS as error:
        raise NotTestableError(f"{path.name!r} cannot be unpacked: {short(str(error))}") from error
