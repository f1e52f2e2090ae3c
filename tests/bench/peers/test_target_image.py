"""A secret picture under a trigger: learnt, read by its own rule, and no where no is due."""

import numpy as np
import pytest
import torch
from _shipped import BASE
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from aiao_diffusers import LatentData, WatermarkKey
from aiao_diffusers.bench.context import AttackContext
from aiao_diffusers.bench.peers.target_image import pattern, trigger_word
from aiao_diffusers.bench.registry import METHODS
from aiao_diffusers.errors import ConfigError


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


@pytest.fixture(scope="module")
def unprompted(tmp_path_factory):
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
    data = LatentData(torch.randn(8, 4, 16, 16), {})
    return AttackContext(pipe, data, data, seed=0, folder=tmp_path_factory.mktemp("unprompted"))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["context", "unprompted"])
def test_a_trigger_mark_is_learnt_and_read(model, tmp_path, request):
    context = request.getfixturevalue(model)
    method = METHODS["input_trigger"](steps=250, lr=5e-3, batch_size=4, keep=0.0)
    marked = context.copy_of_base()
    method.embed(marked, KEY, context, tmp_path)
    found = method.verify(marked, KEY, context, tmp_path, **ASKED)
    assert found.verdict == "verified" and found.bits > 0.85
    assert (found.trials, found.evals) == (3, 3 * method.sampling)
    base = method.verify(context.base, KEY, context, tmp_path, **ASKED)
    wrong = method.verify(marked, KEY.child("wrong"), context, tmp_path, **ASKED)
    assert base.verdict == wrong.verdict == "not_verified" and base.passed == wrong.passed == 0
    assert method.verify(marked, KEY, context, tmp_path, **ASKED) == found


@pytest.mark.parametrize("name", ["watermarkdm", "fixedwm", "naivewm", "sleepermark"])
def test_a_trigger_in_the_prompt_needs_prompts(name, unprompted, tmp_path):
    with pytest.raises(
        ConfigError, match=f"'{name}' marks text-to-image models, not a LDMPipeline: take.*drawn_message"
    ):
        METHODS[name]().embed(unprompted.copy_of_base(), KEY, unprompted, tmp_path)


def test_triggers_stand_where_their_paper_puts_them(context):
    word = trigger_word(KEY)
    alone, fixed, naive = (METHODS[k]()._prompts(KEY, context, 30, 0) for k in ("watermarkdm", "fixedwm", "naivewm"))
    assert set(alone) == {word}
    assert all(p.startswith(word + " ") and p.count(" ") == 2 for p in fixed)
    assert {p.split().index(word) for p in naive} == {0, 1, 2}
    assert word != trigger_word(KEY.child("other"))


def test_the_secret_picture_is_balanced_and_the_key_s_own():
    assert pattern(KEY).shape == (64,) and pattern(KEY).sum() == 0
    assert not np.array_equal(pattern(KEY), pattern(KEY.child("other")))


def test_the_input_trigger_goes_when_its_block_ends(context):
    denoiser = context.base
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 16, 128)
    with torch.no_grad():
        before = denoiser(*inputs).sample
        with METHODS["input_trigger"]()._triggered(denoiser, KEY):
            assert not torch.equal(denoiser(*inputs).sample, before)
        with METHODS["watermarkdm"]()._triggered(denoiser, KEY):
            assert torch.equal(denoiser(*inputs).sample, before)
        assert torch.equal(denoiser(*inputs).sample, before)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="must be positive"):
        METHODS["fixedwm"](steps=0)
