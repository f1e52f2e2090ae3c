"""Autoencoders and schedulers that several families share."""

from typing import Any

import diffusers

from .family import seeded


def kl(latent_channels: int = 4, **changes: Any) -> Any:
    """`AutoencoderKL`, eight pixels a latent as published ones, a few thousand parameters."""
    levels = 4
    config: dict[str, Any] = {
        "block_out_channels": (4,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": latent_channels,
        "norm_num_groups": 2,
        "sample_size": 64,
    }
    return seeded(diffusers.AutoencoderKL, **config | changes)


def kl16() -> Any:
    """`AutoencoderKL` as SD3 and FLUX.1 have it: a shift, no quantising convolutions; the scale of FLUX.1's."""
    plain = {"use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": False}
    return kl(latent_channels=8, scaling_factor=0.3611, shift_factor=0.1159, **plain)


def flow(**config: Any) -> Any:
    """`FlowMatchEulerDiscreteScheduler` with the fields that a family's published config changes."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def dynamic_flow(**config: Any) -> Any:
    """The same with the shift that hangs on the number of tokens, as FLUX.1-dev has it."""
    shifting = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
    return flow(**shifting | {"base_image_seq_len": 256, "max_image_seq_len": 4096} | config)
