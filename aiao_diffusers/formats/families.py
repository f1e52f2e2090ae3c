"""The family of denoisers (SD 1, SD 2, XL, SD 3, FLUX) that a file looks made for; a new family is told here.

Judgements for error messages and refusals, never for a verdict; nothing here loads a tensor.
"""

import re
from collections.abc import Mapping


_TEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
"""Stable Diffusion's generations differ in the width of the text that cross-attention reads."""
_JOINT_WIDTHS = {1536: "Stable Diffusion 3 Medium", 2432: "Stable Diffusion 3.5 Large", 3072: "FLUX.1"}
_CROSS = re.compile(
    r"attn2[._](?:processor[._])?to_[kv](?:_lora)?[._](?:lora[._])?(?:weight|(?:lora_)?(?:down|A)\b|hada_w1_b)"
)
_JOINT = re.compile(
    r"transformer_blocks[._]\d+[._]attn[._](?:to_[qkv]|add_[qkv]_proj)[._](?:weight|(?:lora_)?(?:down|A)\b)"
)
_UNET_BLOCK = re.compile(r"(?:(?:down|up|mid)_blocks?|(?:in|out)put_blocks|middle_block)[._]")


def likely_base(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The family that an adapter or a denoiser looks made for, or None where nothing gives it away.

    Args:
        shapes: name -> shape, of a file or of a denoiser's state.
    """
    for key, shape in shapes.items():
        if len(shape) == 2 and _CROSS.search(key) and shape[1] in _TEXT_WIDTHS:
            return _TEXT_WIDTHS[shape[1]]
        if len(shape) == 2 and _JOINT.search(key) and shape[1] in _JOINT_WIDTHS:
            return _JOINT_WIDTHS[shape[1]]
    if any(re.search(r"(double|single)_blocks[._]\d|single_transformer_blocks", key) for key in shapes):
        return "FLUX.1"
    if any(re.search(r"joint_blocks[._]\d", key) for key in shapes):
        return "Stable Diffusion 3.x"
    # Only XL stacks several transformer blocks in one place of its U-Net, and only it has a second text encoder.
    stacked = (re.search(r"transformer_blocks[._][1-9]", key) and _UNET_BLOCK.search(key) for key in shapes)
    if any(stacked) or any(
        key.startswith(("lora_te2_", "text_encoder_2.", "conditioner.embedders.1.")) for key in shapes
    ):
        return "Stable Diffusion XL"
    return None


def base_hint(file: Mapping[str, tuple[int, ...]], base: Mapping[str, tuple[int, ...]]) -> str:
    """A sentence naming the likely base of `file` and what `base` looks like; empty where the file tells nothing."""
    wanted, given = likely_base(file), likely_base(base)
    if wanted is None:
        return ""
    return f" The file looks made for {wanted}{f', the base given is {given}' if given else ''}."


def differ(file: Mapping[str, tuple[int, ...]], base: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether `file` and `base` are of two known families."""
    wanted, given = likely_base(file), likely_base(base)
    return wanted is not None and given is not None and wanted != given
