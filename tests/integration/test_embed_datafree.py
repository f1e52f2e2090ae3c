"""Owners without their data: prompts alone. A miniature U-Net under the shipped text encoder and tokenizer."""

import pytest
import torch
from _shipped import BASE
from diffusers import UNet2DConditionModel

from aiao_diffusers import EmbedConfig, WatermarkedStableDiffusionPipeline, WatermarkKey


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


def test_marks_from_prompts_alone():
    pipe = pipeline()
    # An untrained U-Net samples latents of ten times the usual scale, which its attention moves little: a hard start.
    fields = {"steps": 120, "lr": 4e-3, "batch_size": 4, "in_sites": 2, "out_sites": 4, "bank_size": 4}
    config = EmbedConfig(**fields, eps=0.1, dec=1.0, pres=0.5, corr=10.0, anchor=0.0, max_price=None, lineage=0)
    record = pipe.embed(KEY, ["a cat", "a red apple", "", "a house"], config).record
    assert len(record.bank) == 3
    assert pipe.verify(KEY).verified
    assert pipe.verify(KEY.child("wrong")).log10_p > -5
    assert pipeline().verify(KEY, record=record).log10_p > -5
