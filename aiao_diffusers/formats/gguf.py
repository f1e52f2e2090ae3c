"""Denoisers in GGUF files: the header as safetensors' reader gives it, and the weights unpacked."""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from ..errors import NotTestableError, UnsafeFileError
from ..files.safetensors_header import Header, TensorInfo
from ..files.text import short
from .upstream import UPSTREAM_ERRORS


def read_gguf_header(path: Path) -> Header:
    """A GGUF file's tensors: `dtype` is GGML's name of the packing, shapes are unpacked, spans count from the file's start.

    Raises:
        NotTestableError: the package gguf is missing. UnsafeFileError: no sound GGUF file.
    """
    if importlib.util.find_spec("gguf") is None:
        raise NotTestableError(f"{path.name!r} is a GGUF file: install the package gguf to read it")
    import gguf

    try:
        tensors = {}
        for t in gguf.GGUFReader(path).tensors:
            shape = tuple(int(n) for n in reversed(t.shape))  # GGUF counts dimensions from the fastest
            start = int(t.data_offset)
            tensors[t.name] = TensorInfo(t.tensor_type.name, shape, start, start + int(t.n_bytes))
        return Header(path, tensors, {}, path.stat().st_size)
    except UPSTREAM_ERRORS as error:
        raise UnsafeFileError(f"{path.name!r} is no sound GGUF file: {short(str(error))}") from error


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
            if info.shape:  # row by row, or the library takes a tensor's worth of memory more
                raw = raw.reshape(gguf.quants.quant_shape_to_byte_shape(info.shape, packing))
            values = gguf.dequantize(raw, packing)
            yield name, torch.from_numpy(np.array(values, np.float32).reshape(info.shape))
    except UPSTREAM_ERRORS as error:
        raise NotTestableError(f"{path.name!r} cannot be unpacked: {short(str(error))}") from error
