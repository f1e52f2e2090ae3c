"""In whose names a file holds a whole denoiser: diffusers' own, or those of the repository that a model comes from.

A family with new names: its blocks go into `_STACKS`, what tells its original names into `_ORIGINAL`, and what diffusers'
converter leaves out into `_LEFT_OUT`.
"""

import re
from collections.abc import Iterable


_STACKS = re.compile(
    r"(?:down_blocks|up_blocks|mid_block|(?:single_|joint_|visual_|temporal_)?transformer_blocks|transformer_layers|"
    r"(?:double|single)_stream_blocks)\."
)
"""Blocks that only denoisers have, control networks aside."""
_SHARED_STACKS = re.compile(r"(?:(?:blocks|layers|double_blocks|noise_refiner)|transformer_(?:in|out)_blocks)\.\d")
_TIME = re.compile(
    r"(?:^|[._])(?:t_(?:embedd|block)|time_?(?:step)?s?_?(?:embed|in\.|text_|caption_|guidance_|cond|proj|token)|adaln|"
    r"scale_shift_table|\w*modulation)",
    re.IGNORECASE,
)
"""What reads the time: text encoders and parts of VAEs stack blocks of the same names and have none of it."""
_OTHER_PARTS = re.compile(r"(?:encoder|decoder|quant_conv|post_quant_conv)\.")
_ORIGINAL = re.compile(
    r"input_blocks\.|joint_blocks\.\d|(?:double|single)_layers\.\d|"
    r"(?:double|single)_blocks\.\d+\.(?!attn\.|(?:img|txt)_(?:mlp\.net|mod\.modulate)|img_norm|txt_norm)|"
    r"patchify_proj\.|net\.(?:blocks|x_embedder)\.|y_embedder\.y_embedding$|layers\.\d+\.attention\.qkv\.|"
    r"blocks\.\d+\.(?:attn\.qkv_[xy]\.|attn\.w[qkvo]\.|(?:self|cross)_attn\.[qkvo]\.)|"
    r"early_stream_modulations\.\w+\.lin\.|(?:content_mode_blocks|txtfusion|clip_txt_mapper|token_refiner\.blocks)\."
)
_LEFT_OUT = {
    "Lumina2Transformer2DModel": re.compile(r"norm_final\.weight"),
    "ZImageTransformer2DModel": re.compile(r"norm_final\.weight"),
    "SanaTransformer2DModel": re.compile(r"pos_embed|y_embedder\.y_embedding"),
    "CosmosTransformer3DModel": re.compile(
        r"(?:net\.)?(?:accum_\w+|pos_embedder\.(?:seq|dim_\w+)|logvar\..+|(?:.+\.)?_extra_state)"
    ),
    "LTX2VideoTransformer3DModel": re.compile(r"(?:video|audio)_embeddings_connector\..+"),
    "Flux3Transformer2DModel": re.compile(r"repa_projectors\..+"),
}


def is_diffusers(names: Iterable[str]) -> bool:
    """Whether these are a denoiser's tensors by their names in diffusers; a part of them is enough, as in one shard.

    Args:
        names: of all tensors of a file, without what wraps the denoiser there.
    """
    names = list(names)
    if any(_OTHER_PARTS.match(name) for name in names):
        return False
    if any(_STACKS.match(name) for name in names):
        return True
    if any(_SHARED_STACKS.match(name) for name in names):
        return any(_TIME.search(name) for name in names)
    return any(name.startswith("conv_in.") for name in names)  # a U-Net's first layer


def is_original(names: Iterable[str]) -> bool:
    """Whether these are a denoiser's tensors by their original names, which diffusers converts for most families.

    Args:
        names: as for `is_diffusers`.
    """
    return any(_ORIGINAL.match(name) for name in names)


def is_left_out(name: str, model: str) -> bool:
    """Whether diffusers' converter drops this original tensor: a norm that nothing reads, a counter of the training.

    Args:
        model: name of the class that is converted to.
    """
    return model in _LEFT_OUT and _LEFT_OUT[model].fullmatch(name) is not None
