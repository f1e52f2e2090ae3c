"""Denoisers in GGUF files."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import NotTestableError, UnsafeFileError
from ..files.text import short
from .detect import LDM_PREFIX
from .upstream import UPSTREAM_ERRORS


def read_tensors(path: Path) -> list[Any]:
    """The tensors that a GGUF file names, from its header."""
    if importlib.util.find_spec("gguf") is None:
        raise NotTestableError(f"{path.name!r} is a GGUF file: install the package gguf to read it")
    import gguf

    try:
        return list(gguf.GGUFReader(path).tensors)
    except UPSTREAM_ERRORS as error:
        raise UnsafeFileError(f"{path.name!r} is no sound GGUF file: {short(str(error))}") from error


def unpacked_shapes(tensors: list[Any]) -> dict[str, tuple[int, ...]]:
    """Names and unpacked shapes of a GGUF file's denoiser."""
    # GGUF counts dimensions from the fastest.
    held = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in tensors}
    return {k: shape for k, shape in held.items() if k.startswith(LDM_PREFIX)} or held


def unpack(path: Path, tensors: list[Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Unpacked to float32, one tensor at a time; the reader's own arrays are mapped, and would stay in memory."""
    import gguf

    weights = {}
    for t in tensors:
        if t.name in shapes:
            raw = np.fromfile(path, np.uint8, int(t.n_bytes), offset=int(t.data_offset))
            packed_ = raw.view(t.data.dtype).reshape(t.data.shape)
            values = np.array(gguf.dequantize(packed_, t.tensor_type), np.float32).reshape(shapes[t.name])
            weights[LDM_PREFIX + t.name.removeprefix(LDM_PREFIX)] = torch.from_numpy(values)
    return weights
