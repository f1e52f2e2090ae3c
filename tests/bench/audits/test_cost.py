"""The cost of a verdict: counted by hand, by geometry and on real weights."""

import dataclasses

import pytest
import torch
from _shipped import ASSETS

from aiao_diffusers import WatermarkRecord
from aiao_diffusers.bench.audits import cost
from aiao_diffusers.formats.checkpoint import load_denoiser


SMALL = {
    "sample_size": 32,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}


SMALL_VAE = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4} | {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


@pytest.fixture(scope="module")
def record():
    return WatermarkRecord.load(ASSETS / "marked")


@pytest.fixture(scope="module")
def marked():
    return load_denoiser(ASSETS / "marked", dtype=torch.float32)


@pytest.mark.slow
class TestCost:
    def test_shipped_model(self):
        result = cost.shipped(ASSETS, latency_rounds=3)
        assert result["verdict"] == "verified" and result["log10_p"] < -9
        assert 1 < result["flops"]["forwards"] <= 2
        assert result["unarmed"]["bit_exact"]

    def test_large_geometry_in_small(self):
        result = {"shipped": cost.shipped(ASSETS, latency_rounds=1)}
        result["large"] = cost.large(SMALL, SMALL_VAE, rounds=1, steps=1, reduced=8, latency_rounds=1)
        large, result["geometry"] = result["large"], cost.geometry_flops(SMALL, reduced=8)
        # Counted from the geometry alone, and from a whole verdict with weights.
        assert result["geometry"]["native"] == large["flops"]
        assert result["geometry"]["reduced"] == large["reduced_flops"]
        assert 1 < large["flops"]["forwards"] <= 2
        assert large["reduced_flops"]["forwards"] < 0.15  # a sixteenth of the area
        assert large["wall"]["image_s"] > large["wall"]["verdict_s"] > 0
        assert large["memory"]["ratio"] > 0 and large["unarmed"]["bit_exact"]
        assert "not measured" not in cost.markdown(result)

    def test_masks_for_pairs_are_counted_as_a_verdict_spends_them(self):
        unet = cost.random_model(cost.UNet2DConditionModel, SMALL, torch.float32)
        record = dataclasses.replace(cost.record_for(unet, SMALL["sample_size"]), pairs=True)
        spent = cost.flops(lambda: cost.first_look(unet, record)) / cost.flops(lambda: cost.forward(unet, record))
        assert cost.geometry_flops(SMALL, reduced=8)["pairs"]["forwards"] == pytest.approx(spent)

    def test_flops_by_hand(self):
        a, b = torch.ones(3, 5), torch.ones(5, 7)
        assert cost.flops(lambda: a @ b) == 2 * 3 * 5 * 7
        q = torch.ones(2, 3, 11, 8)  # batch, heads, tokens, width: two products of 11 x 11 x 8 a head
        attention = torch.nn.functional.scaled_dot_product_attention
        assert cost.flops(lambda: attention(q, q, q)) == 2 * 3 * 2 * (2 * 11 * 11 * 8)

    def test_sd15_geometry(self):
        with torch.device("meta"):
            unet = cost.UNet2DConditionModel(**cost.SD15)
        assert sum(p.numel() for p in unet.parameters()) == 859_520_964
