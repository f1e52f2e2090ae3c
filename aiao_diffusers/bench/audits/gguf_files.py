"""Writers of GGUF, as ComfyUI-GGUF's converter and others make it of a U-Net; the package `gguf` packs, and says what was packed."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .change import State


PACKINGS = ("F16", "Q8_0", "Q4_0", "Q6_K")
ROW = 256
"""Of ComfyUI-GGUF's converter: a weight whose own rows no packing divides is stored in rows of so many numbers."""


def _pack_q6_k(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows of 256 numbers as GGML's Q6_K, which the package only unpacks: 16 blocks of 16, each with a scale of 8 bit, numbers
    of 6 bit around 32, four low bits and two high ones apart."""
    blocks = values.reshape(-1, 16, 16).astype(np.float32)
    scales = np.abs(blocks).max(2) / 31
    total = (scales.max(1, keepdims=True) / 127).astype(np.float16)
    safe = np.where(total == 0, 1, total).astype(np.float32)
    steps = np.ceil(scales / safe).clip(0, 127).astype(np.int8)
    size = safe[..., None] * np.where(steps == 0, 1, steps)[..., None]
    q = (np.round(blocks / size).clip(-32, 31) + 32).astype(np.uint8)
    low, high = (q & 15).reshape(-1, 2, 2, 64), (q >> 4).reshape(-1, 2, 4, 32)
    lows = (low[:, :, 0] | low[:, :, 1] << 4).reshape(-1, 128)
    highs = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).reshape(-1, 64)
    packed = np.concatenate([lows, highs, steps.view(np.uint8), total.view(np.uint8)], 1)
    return packed.reshape(*values.shape[:-1], -1)


def _pack(tensor: torch.Tensor, packing: str, rearranged: bool) -> tuple[np.ndarray[Any, Any], Any]:
    """A tensor's stored numbers and their kind; what the packing does not divide stays float32."""
    import gguf

    values, kind = tensor.float().numpy(), gguf.GGMLQuantizationType[packing]
    if rearranged and _is_rearranged(tensor):
        values = values.reshape(-1, ROW)
    if values.ndim < 2 or values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = gguf.GGMLQuantizationType.F32
    return _pack_q6_k(values) if kind.name == "Q6_K" else gguf.quantize(values, kind), kind


def _is_rearranged(tensor: torch.Tensor) -> bool:
    return tensor.dim() > 1 and tensor.numel() % ROW == 0 and tensor.shape[-1] % ROW != 0


def write_gguf(path: Path, state: State, packing: str, rearranged: bool) -> Path:
    """Write a state.

    Args:
        packing: GGML's name, for the weights that it divides. rearranged: in rows of 256 with their true shape in a field.
    """
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "sd1")
    for key, tensor in state.items():
        if rearranged and _is_rearranged(tensor):
            writer.add_array(f"comfy.gguf.orig_shape.{key}", list(tensor.shape))
        raw, kind = _pack(tensor, packing, rearranged)
        writer.add_tensor(key, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merge_gguf(state: State, packing: str, rearranged: bool) -> State:
    """What the package itself unpacks of what `write_gguf` stores."""
    import gguf

    packed = {key: _pack(tensor, packing, rearranged) for key, tensor in state.items()}
    return {
        key: torch.from_numpy(np.array(gguf.dequantize(raw, kind), np.float32).reshape(state[key].shape))
        for key, (raw, kind) in packed.items()
    }
