"""The example's own VAE, tokenizer and text encoder about a miniature denoiser, once a worker."""

import pytest
import torch
from _peers import SMALL, small_unet
from _shipped import BASE
from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, StableDiffusionPipeline, UNet2DModel
from transformers import CLIPTextModel, CLIPTokenizer

from aiao_diffusers import LatentData
from aiao_diffusers.bench.context import AttackContext


def _rows(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> AttackContext:
    """Text to image."""
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
    data = LatentData(_rows(8, 4, 16, 16), {"encoder_hidden_states": _rows(8, 16, 128)})
    return AttackContext(pipe, data, data, seed=0, folder=tmp_path_factory.mktemp("context"))


@pytest.fixture(scope="session")
def unprompted(tmp_path_factory: pytest.TempPathFactory) -> AttackContext:
    """The same about a denoiser that takes no prompts."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        **SMALL,
        in_channels=4,
        out_channels=4,
        down_block_types=("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    ).eval()
    vae = AutoencoderKL.from_pretrained(BASE / "vae", dtype=torch.float32)
    pipe = LDMPipeline(vae, unet, DDIMScheduler.from_pretrained(BASE / "scheduler"))
    pipe.set_progress_bar_config(disable=True)
    data = LatentData(_rows(8, 4, 16, 16), {})
    return AttackContext(pipe, data, data, seed=0, folder=tmp_path_factory.mktemp("unprompted"))
