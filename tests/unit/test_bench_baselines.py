"""The peers: they learn their mark, read it by their own rule, and say no where no is due."""

from pathlib import Path

import numpy as np
import pytest
import torch
from _tiny import tiny_unet
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from aiao_diffusers import LatentData, WatermarkKey
from aiao_diffusers.bench.baselines.target_image import pattern, trigger_word
from aiao_diffusers.bench.registry import METHODS
from aiao_diffusers.bench.scene import Scene
from aiao_diffusers.errors import ConfigError


BASE = Path(__file__).parents[2] / "examples" / "emoji_diffusion" / "base"
KEY = WatermarkKey(bytes(range(32)), "Test")
ASKED = {"alpha": 1e-6, "trials": 3, "seed": 0}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """The example's own VAE, tokenizer and text encoder about a miniature denoiser."""
    pipe = StableDiffusionPipeline(
        AutoencoderKL.from_pretrained(BASE / "vae", dtype=torch.float32),
        CLIPTextModel.from_pretrained(BASE / "text_encoder", dtype=torch.float32),
        CLIPTokenizer.from_pretrained(BASE / "tokenizer"),
        tiny_unet(0, cross=128),
        DDIMScheduler.from_pretrained(BASE / "scheduler"),
        None,
        None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.register_to_config(sample_size=16)
    data = LatentData(torch.randn(8, 4, 16, 16), {"encoder_hidden_states": torch.randn(8, 16, 128)})
    return Scene(pipe, data, data, seed=0, folder=tmp_path_factory.mktemp("scene"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["watermarkdm", "input_trigger"])
def test_trigger_marks_are_learnt_and_read(scene, kind, tmp_path):
    method = METHODS[kind](steps=250, lr=3e-3, batch_size=4, keep=0.1)
    marked = scene.copy_of_base()
    method.embed(marked, KEY, scene, tmp_path)
    found = method.verify(marked, KEY, scene, tmp_path, **ASKED)
    assert found.verdict == "verified" and found.bits > 0.85
    assert (found.trials, found.evals) == (3, 3 * method.sampling)
    base = method.verify(scene.base, KEY, scene, tmp_path, **ASKED)
    wrong = method.verify(marked, KEY.child("wrong"), scene, tmp_path, **ASKED)
    assert base.verdict == wrong.verdict == "not_verified" and base.passed == wrong.passed == 0
    assert method.verify(marked, KEY, scene, tmp_path, **ASKED) == found


def test_triggers_stand_where_their_paper_puts_them(scene):
    word = trigger_word(KEY)
    alone, fixed, naive = (METHODS[k]()._prompts(KEY, scene, 30, 0) for k in ("watermarkdm", "fixedwm", "naivewm"))
    assert set(alone) == {word}
    assert all(p.startswith(word + " ") and p.count(" ") == 2 for p in fixed)
    assert {p.split().index(word) for p in naive} == {0, 1, 2}
    assert word != trigger_word(KEY.child("other"))


def test_the_secret_picture_is_balanced_and_the_key_s_own():
    assert pattern(KEY).shape == (64,) and pattern(KEY).sum() == 0
    assert not np.array_equal(pattern(KEY), pattern(KEY.child("other")))


def test_the_input_trigger_goes_when_its_block_ends(scene):
    denoiser = scene.base
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 16, 128)
    with torch.no_grad():
        before = denoiser(*inputs).sample
        with METHODS["input_trigger"]()._triggered(denoiser, KEY):
            assert not torch.equal(denoiser(*inputs).sample, before)
        with METHODS["watermarkdm"]()._triggered(denoiser, KEY):
            assert torch.equal(denoiser(*inputs).sample, before)
        assert torch.equal(denoiser(*inputs).sample, before)


def test_likeness_cannot_tell_a_child_from_its_ancestor(scene, tmp_path):
    """The rule finds kin, and so calls the unmarked base itself a descendant: its false verdict is the point."""
    method, owner = METHODS["likeness"](), scene.copy_of_base()
    with torch.no_grad():
        for weight in owner.parameters():
            weight.add_(0.1 * weight.std() * torch.randn_like(weight))
    method.embed(owner, KEY, scene, tmp_path)
    assert method.verify(owner, KEY, scene, tmp_path, **ASKED).statistic == pytest.approx(1.0)
    assert method.verify(scene.base, KEY, scene, tmp_path, **ASKED).verdict == "verified"
    stranger = method.verify(tiny_unet(9, cross=128), KEY, scene, tmp_path, **ASKED)
    assert stranger.verdict == "not_verified" and stranger.log10_p is None


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="must be positive"):
        METHODS["fixedwm"](steps=0)
