"""Likeness finds kin, ancestors too."""

import pytest
import torch
from _shipped import BASE
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from aiao_diffusers import LatentData, WatermarkKey
from aiao_diffusers.bench.context import AttackContext
from aiao_diffusers.bench.registry import METHODS


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


def small_unet(seed=0):
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        **SMALL,
        cross_attention_dim=128,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """The example's own VAE, tokenizer and text encoder about a miniature denoiser."""
    pipe = StableDiffusionPipeline(
        AutoencoderKL.from_pretrained(BASE / "vae", dtype=torch.float32),
        CLIPTextModel.from_pretrained(BASE / "text_encoder", dtype=torch.float32),
        CLIPTokenizer.from_pretrained(BASE / "tokenizer"),
        small_unet(),
        DDIMScheduler.from_pretrained(BASE / "scheduler"),
        None,
        None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    data = LatentData(torch.randn(8, 4, 16, 16), {"encoder_hidden_states": torch.randn(8, 16, 128)})
    return AttackContext(pipe, data, data, seed=0, folder=tmp_path_factory.mktemp("context"))


def test_likeness_cannot_tell_a_child_from_its_ancestor(context, tmp_path):
    """The rule finds kin, and so calls the unmarked base itself a descendant: its false verdict is the point."""
    method, owner = METHODS["likeness"](), context.copy_of_base()
    with torch.no_grad():
        for weight in owner.parameters():
            weight.add_(0.1 * weight.std() * torch.randn_like(weight))
    method.embed(owner, KEY, context, tmp_path)
    assert method.verify(owner, KEY, context, tmp_path, **ASKED).statistic == pytest.approx(1.0)
    assert method.verify(context.base, KEY, context, tmp_path, **ASKED).verdict == "verified"
    stranger = method.verify(small_unet(9), KEY, context, tmp_path, **ASKED)
    assert stranger.verdict == "not_verified" and stranger.log10_p is None
