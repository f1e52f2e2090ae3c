"""Where transformers with adaptive norms carry a direction: the constant part of a shift, which biases behind it absorb.

An adaptive norm puts out norm(x) (1 + scale) + shift, and its shift has a part that no input moves: a chunk of the modulation's
bias, or a row of a table. What is added there reaches every layer that takes the activation as it is, and each takes it off again by
a bias: linear, so an average of weights stays as exact. A row below is exact if it names *all* of these layers.

Source: the forwards of diffusers 0.39 to 0.42, block by block.
"""

from typing import Any, NamedTuple

from .site import CarrierSite, Found, Part, bias_fails


class Row(NamedTuple):
    """A site of a block.

    Attributes:
        shifted (`str`): what makes the shift: names of norms with the chunk's label (`_CHUNKS`), or of parameters with part/parts;
            several are moved alike.
        layers (`str`): all layers that take the activation; `?` marks one that a block may lack.
        name (`str`): the site's, below the block.
    """

    shifted: str
    layers: str
    name: str


_CHUNKS = {
    "AdaLayerNormZero": (6, {"msa": 0, "mlp": 3}),
    "AdaLayerNormZeroSingle": (3, {"msa": 0}),
    "AdaLayerNormContinuous": (2, {"msa": 1}),
    "CogView3PlusAdaLayerNormZeroTextImage": (12, {"msa": 0, "mlp": 3, "text_msa": 6, "text_mlp": 9}),
    "CogView4AdaLayerNormZero": (12, {"msa": 0, "text_msa": 1, "mlp": 6, "text_mlp": 7}),
    "CogVideoXLayerNormZero": (6, {"msa": 0, "text_msa": 3}),
    "HunyuanVideoTokenReplaceAdaLayerNormZero": (6, {"msa": 0, "mlp": 3}),
    "HunyuanVideoTokenReplaceAdaLayerNormZeroSingle": (3, {"msa": 0}),
    "SD35AdaLayerNormZeroX": (9, {"msa": 0, "mlp": 3, "msa2": 6}),
}
"""Class of a norm -> chunks of its `linear`, and which of them are shifts."""

_QKV = "{0}.to_q {0}.to_k {0}.to_v"
_ADDED = "attn.add_q_proj attn.add_k_proj attn.add_v_proj"


def _values(attention: str) -> Row:
    """The weights of an attention add up to 1, so what is constant over its values reaches the output layer."""
    return Row(f"{attention}.to_v.bias", f"{attention}.to_out.0", f"{attention}.to_out.0")


_JOINT_VALUES = Row("attn.to_v.bias attn.add_v_proj.bias", "attn.to_out.0 attn.to_add_out?", "attn.to_out.0")
_JOINT = (
    Row("norm1:msa", _QKV.format("attn"), "norm1"),
    Row("norm1_context:msa", _ADDED, "norm1_context"),
    _JOINT_VALUES,
    Row("norm1:mlp", "ff.net.0.proj", "norm2"),
    Row("norm1_context:mlp", "ff_context.net.0.proj", "norm2_context"),
)
_SINGLE = (Row("norm:msa", _QKV.format("attn") + " proj_mlp", "norm"),)
_QWEN = (
    Row("img_mod.1.bias:0/6", _QKV.format("attn"), "img_norm1"),
    Row("txt_mod.1.bias:0/6", _ADDED, "txt_norm1"),
    _JOINT_VALUES,
    Row("img_mod.1.bias:3/6", "img_mlp.net.0.proj", "img_norm2"),
    Row("txt_mod.1.bias:3/6", "txt_mlp.net.0.proj", "txt_norm2"),
)
_WAN = (
    Row("scale_shift_table:0/6", _QKV.format("attn1"), "norm1"),
    _values("attn1"),
    Row("norm2.bias", "attn2.to_q", "norm2"),
    _values("attn2"),
    Row("scale_shift_table:3/6", "ffn.net.0.proj", "norm3"),
)
# Their cross-attention takes the hidden states without a norm: nothing to shift before its queries.
_TABLE = (
    Row("scale_shift_table:0/6", _QKV.format("attn1"), "norm1"),
    _values("attn1"),
    _values("attn2"),
    Row("scale_shift_table:3/6", "ff.net.0.proj", "norm2"),
)
_ZERO = (
    Row("norm1:msa", _QKV.format("attn1"), "norm1"),
    _values("attn1"),
    Row("norm1:mlp", "ff.net.0.proj", "norm3"),
)
_SANA = (*_TABLE[:3], Row("scale_shift_table:3/6", "ff.conv_inverted", "norm2"))
# Text and image go through the same layers: both shifts move alike.
_COGVIDEO = (
    Row("norm1:msa norm1:text_msa", _QKV.format("attn1"), "norm1"),
    _values("attn1"),
    Row("norm2:msa norm2:text_msa", "ff.net.0.proj", "norm2"),
)
_COGVIEW = (
    Row("norm1:msa norm1:text_msa", _QKV.format("attn1"), "norm1"),
    _values("attn1"),
    Row("norm1:mlp norm1:text_mlp", "ff.net.0.proj", "norm2"),
)
_REFINER = (
    Row("norm1.bias", _QKV.format("attn"), "norm1"),
    _values("attn"),
    Row("norm2.bias", "ff.net.0.proj", "norm2"),
)
_OUT = (Row("norm_out:msa", "proj_out", "norm_out"),)
_TABLE_OUT = (Row("scale_shift_table:0/2", "proj_out", "norm_out"),)

_ROWS: dict[str, tuple[Row, ...]] = {
    **dict.fromkeys(
        (
            "AuraFlowJointTransformerBlock",
            "BriaTransformerBlock",
            "FluxTransformerBlock",
            "HunyuanImageTransformerBlock",
            "HunyuanVideo15TransformerBlock",
            "HunyuanVideoTokenReplaceTransformerBlock",
            "HunyuanVideoTransformerBlock",
            "LongCatImageTransformerBlock",
            "OvisImageTransformerBlock",
        ),
        _JOINT,
    ),
    "JointTransformerBlock": (*_JOINT, Row("norm1:msa2", _QKV.format("attn2"), "norm1.2"), _values("attn2")),
    "SD3SingleTransformerBlock": (
        Row("norm1:msa", _QKV.format("attn"), "norm1"),
        _values("attn"),
        Row("norm1:mlp", "ff.net.0.proj", "norm2"),
    ),
    **dict.fromkeys(
        (
            "BriaSingleTransformerBlock",
            "FluxSingleTransformerBlock",
            "HunyuanImageSingleTransformerBlock",
            "HunyuanVideoSingleTransformerBlock",
            "HunyuanVideoTokenReplaceSingleTransformerBlock",
            "LongCatImageSingleTransformerBlock",
            "OvisImageSingleTransformerBlock",
        ),
        _SINGLE,
    ),
    **dict.fromkeys(
        (
            "HunyuanImageIndividualTokenRefinerBlock",
            "HunyuanVideoIndividualTokenRefinerBlock",
            "HunyuanVideo15IndividualTokenRefinerBlock",
        ),
        _REFINER,
    ),
    "ChromaTransformerBlock": (_JOINT_VALUES,),
    "QwenImageTransformerBlock": _QWEN,
    **dict.fromkeys(("SkyReelsV2TransformerBlock", "WanTransformerBlock", "WanVACETransformerBlock"), _WAN),
    **dict.fromkeys(("AllegroTransformerBlock", "LTXVideoTransformerBlock"), _TABLE),
    "SanaTransformerBlock": _SANA,
    "CogVideoXBlock": _COGVIDEO,
    **dict.fromkeys(("CogView3PlusTransformerBlock", "CogView4TransformerBlock"), _COGVIEW),
    **dict.fromkeys(
        (
            "BriaTransformer2DModel",
            "FluxTransformer2DModel",
            "HunyuanVideoTransformer3DModel",
            "LongCatImageTransformer2DModel",
            "OvisImageTransformer2DModel",
            "QwenImageTransformer2DModel",
            "SD3Transformer2DModel",
        ),
        _OUT,
    ),
    **dict.fromkeys(
        (
            "LTXVideoTransformer3DModel",
            "PixArtTransformer2DModel",
            "SanaTransformer2DModel",
            "WanTransformer3DModel",
        ),
        _TABLE_OUT,
    ),
    "DiTTransformer2DModel": (Row("proj_out_1.bias:0/2", "proj_out_2", "norm_out"),),
}
"""Class of a block, or of a denoiser for its last layer -> its sites."""
_BASIC = {"ada_norm_single": _TABLE, "ada_norm_zero": _ZERO}
"""`norm_type` of a `BasicTransformerBlock` -> its sites."""

_SHARED = "its shifts come from one modulation for all blocks, without a bias of its own"
_SCALED = "its norms are scaled but not shifted"
_WITHOUT = {
    "AuraFlowSingleTransformerBlock": "its layers and its modulation have no biases",
    "ChromaSingleTransformerBlock": "its shifts come from one network for all blocks",
    "Flux2SingleTransformerBlock": _SHARED,
    "Flux2TransformerBlock": _SHARED,
    "Lumina2TransformerBlock": _SCALED,
    "LuminaNextDiTBlock": _SCALED,
    "MochiTransformerBlock": _SCALED,
    "ZImageTransformerBlock": _SCALED,
}
"""Class of a block -> why none of its activations carries a direction exactly."""


def is_modulated(module: Any) -> bool:
    """Whether this file knows the module: a block, or a denoiser with a last layer."""
    name = type(module).__name__
    if name == "BasicTransformerBlock":
        return module.norm_type in _BASIC and module.pos_embed is None and not module.only_cross_attention
    return name in _ROWS or name in _WITHOUT


def find_modulated(name: str, block: Any) -> Found:
    """The sites of a module that `is_modulated`.

    Args:
        name (`str`): the module's; "" for the denoiser.
        block: the module, on any device.
    """
    kind = type(block).__name__
    if kind in _WITHOUT:
        yield name, _WITHOUT[kind]
        return
    for row in _BASIC[block.norm_type] if kind == "BasicTransformerBlock" else _ROWS[kind]:
        at = f"{name}.{row.name}" if name else row.name
        if not _is_there(block, row):
            continue
        found = _of_row(name, block, row)
        yield at, found if isinstance(found, str) else CarrierSite(at, *found)


def _is_there(block: Any, row: Row) -> bool:
    """False for what a variant of the block is without: a second attention, the text's feed-forward in the last block."""
    first = _at(block, row.layers.split()[0])
    if first is None:
        return False
    norms = [part.split(":") for part in row.shifted.split() if ":" in part and "/" not in part]
    return all(label in _CHUNKS.get(type(_at(block, norm)).__name__, (0, {label: 0}))[1] for norm, label in norms)


def _of_row(name: str, block: Any, row: Row) -> tuple[Any, ...] | str:
    """Width, kind, shifted parts, layers and absorbing layers, or why this block has none."""
    start, taking = f"{name}." if name else "", []
    for layer in row.layers.split():
        module = _at(block, layer.rstrip("?"))
        if module is None and layer.endswith("?"):
            continue
        if reason := bias_fails(module, layer.rstrip("?")) or _fused(block, layer):
            return reason
        taking.append(layer.rstrip("?"))
    width = _at(block, taking[0]).weight.shape[1]
    parts = []
    for shifted in row.shifted.split():
        path, index, count = _part(block, shifted)
        parameter = _at(block, path)
        if parameter is None:
            return f"{path.removesuffix('.bias')} has no bias"
        if parameter.numel() != count * width:
            return f"{path} is not {count} shifts of {width} channels"
        parts.append(Part(start + path, index, count))
    layers = tuple(start + layer for layer in taking if not _ignores_constants(block, layer))
    return width, "modulated", tuple(parts), layers, tuple(start + layer for layer in taking)


def _part(block: Any, shifted: str) -> tuple[str, int, int]:
    """Parameter, which part, of how many."""
    path, _, which = shifted.partition(":")
    if "/" in which:
        index, count = map(int, which.split("/"))
        return path, index, count
    if not which:
        return path, 0, 1
    count, labels = _CHUNKS.get(type(_at(block, path)).__name__, (0, {which: 0}))
    return f"{path}.linear.bias", labels[which], count


def _at(block: Any, path: str) -> Any:
    """The module or parameter below a block; None where there is none."""
    for step in path.split("."):
        block = getattr(block, step, None)
    return block


def _fused(block: Any, layer: str) -> str | None:
    attention = _at(block, layer.partition(".")[0])
    return "the attention has fused projections" if getattr(attention, "fused_projections", False) else None


def _ignores_constants(block: Any, layer: str) -> bool:
    """Keys of an attention that norms none and has no second stream."""
    attention = _at(block, layer.partition(".")[0])
    alone = getattr(attention, "norm_k", None) is None and getattr(attention, "added_kv_proj_dim", None) is None
    return layer.endswith(".to_k") and alone
