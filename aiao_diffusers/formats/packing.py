"""How a file packs its numbers: scales beside narrow weights are undone here, other packings refused by name."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..errors import NotTestableError
from ..files.safetensors_header import Header, check_finite, stream
from ..files.text import short


_PACKED = (
    (re.compile(r"\.(absmax|quant_map|nested_absmax|quant_state\.bitsandbytes__\w+)$"), "bitsandbytes, 4 bit"),
    (re.compile(r"\.(SCB|weight_format)$"), "bitsandbytes, 8 bit"),
    (re.compile(r"\._(packed|shift|group_size)$"), "optimum-quanto, below 8 bit"),
    (re.compile(r"\.(qweight|qzeros|g_idx|wscales|smooth_factor)$"), "GPTQ, AWQ or SVDQuant"),
    (re.compile(r"[._:](qdata|_weight_qdata|scale_and_zero)$"), "torchao"),
)
SCALE_OF = re.compile(r"(?P<weight>.+)\.(?:scale_weight|weight_scale|weight\._scale)$")
SCALE_NOTES = re.compile(r"(^|\.)(scaled_fp8|scale_input|input_scale|output_scale|comfy_quant)$")
QUANTO_DATA = "._data"
QUANTO_MAP = "quanto_qmap.json"
"""What optimum-quanto writes beside a model's weights, whose config.json then says nothing of packing."""
_QUANTO_WIDTHS = ("int8", "float8")
_LIBRARIES = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "quanto": "optimum-quanto", "gguf": "gguf"}


def packing_of(header: Header) -> str | None:
    """Which quantisation a file's numbers are packed by, or None for plain floats.

    Read as plain numbers, packed ones give a denoiser or an adapter of noise, or one of another scale. 8 bit with scales
    beside it is not packed in this sense: `scales_of` undoes it.
    """
    for pattern, name in _PACKED:
        if any(pattern.search(key) for key in header.tensors):
            return name
    scaled = scales_of(header)
    for key, info in header.tensors.items():
        if key.endswith(QUANTO_DATA) and key not in scaled:
            return "optimum-quanto, without a scale"
        if key not in scaled and len(info.shape) >= 2 and info.dtype[0] in "UIBC" and info.dtype != "BF16":
            return f"{key!r} of dtype {info.dtype}, an unknown packing"
    return None


def scales_of(header: Header) -> dict[str, str]:
    """Weight -> the tensor that it must be multiplied with: float8 of the ComfyUI kind, 8 bit of optimum-quanto."""
    found = {}
    for key in header.tensors:
        match = SCALE_OF.match(key)
        quanto = key.endswith("._scale")
        weight = f"{match['weight']}.weight{QUANTO_DATA if quanto else ''}" if match else ""
        if weight in header.tensors and header.tensors[weight].dtype.startswith(("F8", "I8") if quanto else "F8"):
            found[weight] = key
    return found


def refuse_packed(header: Header) -> None:
    """Raise NotTestableError where a denoiser's numbers are packed in a way that is not undone here."""
    reason = packing_of(header)
    if reason is not None:
        raise NotTestableError(
            f"{header.path.name!r} is stored quantised ({reason}): load it with its own library and pass the dequantised "
            f"denoiser instead"
        )


def is_readable(config: Any) -> bool:
    """Whether a folder is plain, or holds 8 bit of optimum-quanto, whose numbers and scales need no library to read.

    Args:
        config: the field `quantization_config` of its config.json.
    """
    if config is None:
        return True
    wanted = {"quant_method": "quanto"}
    return (
        isinstance(config, dict) and config.items() >= wanted.items() and config.get("weights_dtype") in _QUANTO_WIDTHS
    )


def refuse_quantised(config: Any, what: str) -> None:
    """Raise NotTestableError, with what to do instead, where another library than ours has quantised a folder.

    Args:
        config: as in `is_readable`.
    """
    if is_readable(config):
        return
    method = config.get("quant_method") if isinstance(config, dict) else None
    library = _LIBRARIES.get(method) if isinstance(method, str) else None
    if library is None:
        raise NotTestableError(
            f"{what} is stored quantised by a method unknown here ({short(config)}): ask for the plain weights"
        )
    raise NotTestableError(
        f"{what} is stored quantised by {library} ({short(config)}), whose packed tensors only that library reads, some of "
        f"them on a GPU alone: load it with diffusers and {library}, call .dequantize() and pass the denoiser itself"
    )


def plain_tensors(header: Header, names: Mapping[str, str], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file as finite plain floats under their new names, one at a time; float8 scales are undone.

    Args:
        names: key in the file -> new name; other keys are passed over. dtype: of the floats.
    Raises:
        NotTestableError: NaN or Inf, or a scale that fits no weight. UnsafeFileError: as `stream`.
    """
    scale_of = scales_of(header)
    factors = dict(stream(header, set(scale_of.values())))
    for key, tensor in stream(header, names.keys()):
        if key in scale_of:
            factor = factors[scale_of[key]].float()
            if factor.numel() not in (1, tensor.shape[0]):
                raise NotTestableError(
                    f"{short(scale_of[key])} of shape {list(factor.shape)} is no scale of {short(key)}"
                )
            tensor = tensor.float() * factor.reshape(-1, *[1] * (tensor.dim() - 1))
        check_finite({key: tensor}, header.path.name)
        yield names[key], tensor.to(dtype) if tensor.is_floating_point() else tensor
