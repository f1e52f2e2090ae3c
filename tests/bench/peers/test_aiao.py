"""Our own mark as a method of the benchmark."""

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
from aiao_diffusers.bench.context import AttackContext, open_data, open_pipe
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


def test_a_mark_is_carried_by_the_layers_asked_for(context):
    chosen = {
        name: METHODS["aiao"](train="lazy", carrier=name)
        ._profile(context.copy_of_base(), context)
        .laziest(context.base, 0.3)
        for name in ("lazy", "busy", "random")
    }
    moved = METHODS["aiao"](train="lazy")._profile(context.copy_of_base(), context)
    assert chosen["lazy"] == moved.laziest(context.base, 0.3) and chosen["busy"] == moved.busiest(context.base, 0.3)
    assert chosen["lazy"][0] != chosen["busy"][0]
    assert set(chosen["random"]) not in (set(chosen["lazy"]), set(chosen["busy"]))
    with pytest.raises(ConfigError, match="did you mean 'busy'"):
        METHODS["aiao"](train="lazy", carrier="bussy")


def test_the_look_beyond_the_twin_is_taken_where_others_verify_too(tmp_path):
    places = (BASE.parent,)
    pipe = open_pipe("base", places)
    data = open_data(pipe, "latents/noto.safetensors", places).take(torch.arange(4))
    context = AttackContext(pipe, data, data, 0, tmp_path / "shared", places)
    looks, marked = {}, context.copy_of_base()
    for twin in (False, True):
        method = METHODS["aiao"](marked="marked", key="demo.key", twin=twin)
        method.embed(marked, KEY, context, tmp_path)
        found = method.verify(marked, method.own_key(KEY, context), context, tmp_path, **ASKED)
        assert found.verdict == "verified" and found.look in found.looks
        looks[twin] = found.looks
    beyond = set(looks[True]) - set(looks[False])
    assert beyond == {"beyond the twin x1, ranks", "beyond the twin x1, whitened"}
    assert max(looks[True][label] for label in beyond) < -20
    control = method.verify(marked, method.own_key(KEY, context).child("wrong"), context, tmp_path, **ASKED)
    assert control.verdict == "not_verified" and min(control.looks.values()) > -5
