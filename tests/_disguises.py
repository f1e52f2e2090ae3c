"""Miniatures to disguise: wide enough for a mark that alignment finds again, with norms that are not the identity."""

from typing import Any

import torch
from _tiny import tiny_unet
from diffusers import UNet2DConditionModel

from aiao_diffusers import LatentData


def as_trained(seed: int = 0) -> UNet2DConditionModel:
    """A miniature whose norms are not the identity, as after training."""
    unet = tiny_unet(seed)
    with torch.no_grad():
        for p in unet.parameters():
            p += 0.1 * torch.randn(p.shape)
    return unet


def conditional(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**config | changes).eval()


def latents(rows: int = 16, seed: int = 1) -> LatentData:
    random = torch.Generator().manual_seed(seed)
    latents, text = torch.randn(rows, 4, 8, 8, generator=random), torch.randn(rows, 5, 12, generator=random)
    return LatentData(latents, {"encoder_hidden_states": text})
