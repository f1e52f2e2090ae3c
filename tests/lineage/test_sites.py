"""Which places of a denoiser can carry a direction, by its modules alone."""

from collections import Counter

import pytest
import torch
from _carried import KEY, carry, text_unet
from _tiny import tiny_unconditional
from accelerate import init_empty_weights
from diffusers import Transformer2DModel, UNet2DConditionModel
from torch import nn

from aiao_diffusers.lineage.sites import plan_carrier
from aiao_diffusers.lineage.weights import read_lineage_in_weights


def test_each_block_of_a_text_unet_has_six_sites():
    unet = text_unet()
    plan = plan_carrier(unet)
    assert Counter(site.kind for site in plan.sites) == dict.fromkeys(
        ("attention", "attention_output", "query", "feed_forward", "projection_in", "projection_out"), 4
    )
    assert plan.left_out == {}
    assert len({site.name for site in plan.sites}) == 24
    layers = [layer for site in plan.sites for layer in site.layers]
    assert len(layers) == len(set(layers)) == 28
    for site in plan.sites:
        assert {unet.get_submodule(layer).weight.shape[1] for layer in site.layers} == {site.width}
        assert not any(layer.endswith("to_k") for layer in site.layers)


def test_a_blank_model_has_the_same_plan():
    with init_empty_weights():
        blank = UNet2DConditionModel.from_config(text_unet().config)
    assert next(blank.parameters()).is_meta
    assert plan_carrier(blank) == plan_carrier(text_unet())


def test_attention_of_an_unconditional_unet_is_carried_by_its_biases():
    plan = plan_carrier(tiny_unconditional())
    assert {site.kind for site in plan.sites} == {"attention", "attention_output"}
    assert {site.shifted[0].module.rpartition(".")[2] for site in plan.sites} == {"group_norm", "to_v"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"only_cross_attention": True}, "reads text"),
        (
            {
                "down_block_types": ("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
                "up_block_types": ("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
                "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            },
            "text has values beside",
        ),
    ],
)
def test_attention_that_mixes_in_text_is_left_out_with_the_reason(changes, reason):
    plan = plan_carrier(text_unet(**changes))
    assert plan.left_out and all(reason in told for told in plan.left_out.values())
    left = {name.rpartition(".transformer_blocks")[0] for name in plan.left_out}
    assert not any(site.kind.startswith("attention") and site.name.startswith(tuple(left)) for site in plan.sites)


def test_an_unknown_kind_of_norm_is_left_out_with_the_reason():
    plan = plan_carrier(with_norms("ada_norm"))
    assert plan.sites == ()
    assert "ada_norm" in plan.left_out["transformer_blocks.0"]


def with_norms(norm_type: str) -> Transformer2DModel:
    with torch.device("meta"):
        return Transformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            sample_size=4,
            num_vector_embeds=8,
            num_embeds_ada_norm=10,
            norm_type=norm_type,
        )


def test_a_gate_behind_the_last_feed_forward_leaves_the_output_layer_out():
    with torch.device("meta"):
        model = Transformer2DModel(
            2, 8, in_channels=16, norm_num_groups=4, norm_type="ada_norm_single", attention_bias=True
        )
    plan = plan_carrier(model)
    assert "gate" in plan.left_out[".proj_out"]
    assert any(site.kind == "modulated" for site in plan.sites)


class Wrapped(nn.Module):
    """What somebody put around a module; names below it are others."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


BLOCK = "down_blocks.1.attentions.0"
INNER = f"{BLOCK}.transformer_blocks.0"


@pytest.mark.parametrize(
    "name",
    [
        *(f"{BLOCK}{part}" for part in ("", ".norm", ".proj_in", ".proj_out", ".transformer_blocks.0")),
        *(f"{INNER}.{part}" for part in ("norm1", "attn1", "attn1.to_q", "attn1.to_v", "attn1.to_out.0")),
        *(f"{INNER}.{part}" for part in ("norm2", "attn2", "attn2.to_q", "norm3", "ff", "ff.net.0", "ff.net.2")),
    ],
)
def test_a_module_in_anothers_place_costs_its_sites_alone(name):
    unet = text_unet()
    parent, _, leaf = name.rpartition(".")
    setattr(unet.get_submodule(parent), leaf, Wrapped(unet.get_submodule(name)))
    plan = plan_carrier(unet)
    others = [site for site in plan_carrier(text_unet()).sites if not site.name.startswith(BLOCK)]
    assert [site for site in plan.sites if not site.name.startswith(BLOCK)] == others
    carry(unet)
    read = read_lineage_in_weights(unet, KEY)
    assert read.verdict == "verified" and read_lineage_in_weights(unet, KEY.child("x")).verdict == "not_verified"
