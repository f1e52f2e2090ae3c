"""The cost of a verdict: counted by hand, by geometry and on real weights."""

import pytest
import torch
from _geometry import SMALL
from _shipped import ASSETS

from aiao_diffusers import WatermarkRecord
from aiao_diffusers.bench.audits import cost
from aiao_diffusers.bench.audits.flops import geometry_flops
from aiao_diffusers.formats.checkpoint import load_denoiser


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
        large, result["geometry"] = result["large"], geometry_flops(SMALL, reduced=8)
        # Counted from the geometry alone, and from a whole verdict with weights.
        assert result["geometry"]["native"] == large["flops"]
        assert result["geometry"]["reduced"] == large["reduced_flops"]
        assert 1 < large["flops"]["forwards"] <= 2
        assert large["reduced_flops"]["forwards"] < 0.15  # a sixteenth of the area
        assert large["wall"]["image_s"] > large["wall"]["verdict_s"] > 0
        memory = large["memory"]
        # So small a model may take less than what tests before it gave back.
        above = (memory["peak_mib"] - memory["baseline_mib"]) / memory["weights_mib"]
        assert memory["ratio"] == pytest.approx(above) and memory["peak_mib"] > 0
        assert large["unarmed"]["bit_exact"]
        assert "not measured" not in cost.markdown(result)
