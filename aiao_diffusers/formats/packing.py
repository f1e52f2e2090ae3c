"""How a file packs its numbers: scales beside narrow weights, and packings that are not read."""

import re

from ..files.safetensors_header import Header


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
