"""Owners without their data: prompts alone, or nothing. A miniature U-Net under the shipped text encoder and tokenizer."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from aiao_diffusers import EmbedConfig, WatermarkedStableDiffusionPipeline, WatermarkKey


BASE = Path(__file__).parents[2] / "examples" / "emoji_diffusion" / "base"
KEY = WatermarkKey(bytes(range(32)), "Demo")
pytestmark = pytest.mark.slow


def pipeline() -> WatermarkedStableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return WatermarkedStableDiffusionPipeline.from_pretrained(BASE, unet=unet.eval())


@pytest.mark.parametrize("data", [["a cat", "a red apple", "", "a house"], None], ids=["prompts", "nothing"])
def test_marks_without_data(data):
    pipe = pipeline()
    config = EmbedConfig(steps=60, lr=2e-3, batch_size=4, in_sites=2, out_sites=4, eps=1.0, dec=2.0, bank_size=4)
    record = pipe.embed(KEY, data, config).record
    assert len(record.bank) == (3 if data else 4)
    assert pipe.verify(KEY).verified
    assert pipe.verify(KEY.child("wrong")).log10_p > -3
    assert pipeline().verify(KEY, record=record).log10_p > -3
