"""What the tests of peers share: a key, what is asked of a mark, and a miniature that sees a picture as a whole."""

import torch
from diffusers import UNet2DConditionModel

from aiao_diffusers import WatermarkKey


KEY = WatermarkKey(bytes(range(32)), "Test")
ASKED = {"alpha": 1e-6, "trials": 3, "seed": 0}
# Three levels, so that the deepest sees the whole picture: a picture's place cannot be learnt from less.
SMALL = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def small_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        **SMALL,
        cross_attention_dim=128,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
