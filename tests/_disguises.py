"""Miniatures to disguise: wide enough for a mark that alignment finds again, with norms that are not the identity."""

import copy
from typing import Any

import torch
from _shipped import DEMO
from _tiny import tiny_unet
from diffusers import DDPMScheduler, UNet2DConditionModel

from aiao_diffusers import EmbedConfig, EmbedReport, LatentData, embed


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


def mark_miniature() -> tuple[UNet2DConditionModel, UNet2DConditionModel, EmbedReport]:
    """A miniature teacher, the same marked, and what embedding returned."""
    unet = conditional(layers_per_block=2)
    teacher = copy.deepcopy(unet)
    fields = {"steps": 80, "lr": 2e-3, "batch_size": 4, "in_sites": 2, "out_sites": 4, "bank_size": 8}
    config = EmbedConfig(**fields, response=1.0, eps=1.0, dec=2.0, corr=2.0, anchor=0.0, max_price=None, lineage=0)
    return teacher, unet, embed(unet, DEMO, latents(), config, scheduler=DDPMScheduler())
