"""Denoisers in GGUF files: the header as safetensors' reader gives it, and the weights unpacked.

Packings work on rows of 32 or 256 numbers. ComfyUI-GGUF stores a weight whose rows are shorter, as all of a U-Net's
convolutions, in rows of 256, and its true shape in a field of the file; without the field the stored shape is the true one.
"""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import NotTestableError, UnsafeFileError
from ..files.mistaken import mistaken_for, read_start
from ..files.safetensors_header import Header, TensorInfo
from ..files.text import short
from .upstream import UPSTREAM_ERRORS


SHAPE_FIELD = "comfy.gguf.orig_shape."


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
