"""The measuring commands on a small scale: what they report must be able to come out wrong."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from _shipped import ASSETS
from typer.testing import CliRunner

from aiao_diffusers import WatermarkKey, WatermarkRecord, verify
from aiao_diffusers.bench.audits import cost, nulls
from aiao_diffusers.cli import app
from aiao_diffusers.errors import OutputExistsError, SuspectError
from aiao_diffusers.formats.checkpoint import load_denoiser


KEY = WatermarkKey(bytes(range(32)), "Demo")
pytestmark = pytest.mark.slow
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


class TestNulls:
    def test_one_trial_is_that_of_verify(self, marked, record):
        for seed, key in enumerate((KEY, KEY.child("other"))):
            report = verify(marked, key, record=record, trials=1, seed=seed, amplitudes=(1.0,))
            (triples,) = nulls.readings(marked, record, [key], seed=seed)
            # Sites in order of execution in both.
            assert [(c, h) for c, _, h in triples] == [(s.channels, s.hits) for s in report.sites]

    def test_keys_of_one_forward_do_not_mix(self, marked, record):
        keys = [KEY.child("a"), KEY, KEY.child("b"), KEY]
        p = [nulls.combined_log10_p(triples) for triples in nulls.readings(marked, record, keys, seed=1)]
        assert max(p[1], p[3]) < -9 and min(p[0], p[2]) > -5

    def test_keys_are_fresh_and_made_again(self):
        keys = nulls.keys_of("base", 5, 0)
        assert keys == nulls.keys_of("base", 5, 0)
        others = [*nulls.keys_of("base", 5, 1), *nulls.keys_of("marked", 5, 0)]
        assert len({key.commitment for key in (*keys, *others)}) == 15

    def test_a_leak_would_show(self):
        """Control of the control: p-values half a decade too small fail the test that honest ones pass."""
        honest = np.random.default_rng(0).random(2000)
        row = nulls.Group("x", 1, np.log10(honest), honest).row(1e-6)
        leaky = nulls.Group("x", 1, np.log10(honest) - 0.5, honest / 10**0.5).row(1e-6)
        assert row["ks_p"] > 0.01 > leaky["ks_p"]
        found = nulls.Group("x", 1, np.append(np.log10(honest), -6.31), honest).row(1e-6)
        assert row["verdicts"] == 0 and found["verdicts"] == 1
        assert nulls.Group("x", 1, np.array([-6.29]), honest).row(1e-6)["verdicts"] == 0  # the look pays two

    def test_command(self, tmp_path):
        words = ["bench", "nulls", "--assets", str(ASSETS), "--pairs", "60", "--searched", "100", "--steps", "1"]
        done = CliRunner().invoke(app, [*words, "-o", str(tmp_path), "--json"])
        assert done.exit_code == 0, done.output
        result = json.loads((tmp_path / "nulls.json").read_text())
        groups = {row["group"]: row for row in result["groups"]}
        assert list(groups) == [
            "base",
            "fine-tunes of base",
            "LoRAs on base",
            "marked with another key",
            "random weights",
            "all",
        ]
        assert groups["all"]["pairs"] == 60 and groups["marked with another key"]["models"] == 3
        assert all(row["verdicts"] == 0 and row["ks_p"] > 1e-3 for row in result["groups"])
        low, high = result["claimant"]["expected"]
        assert low < np.log10(1 / 100) < high and result["claimant"]["blocks"] == 1
        assert "KS p" in (tmp_path / "nulls.md").read_text()
        assert (tmp_path / "nulls.png").read_bytes().startswith(b"\x89PNG")


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

    def test_command(self, tmp_path):
        words = ["bench", "verify-cost", "--assets", str(ASSETS), "--no-geometry", "--latency-rounds", "1"]
        done = CliRunner().invoke(app, [*words, "-o", str(tmp_path)])
        assert done.exit_code == 0 and "forwards" in done.output
        assert json.loads((tmp_path / "verify-cost.json").read_text())["shipped"]["verdict"] == "verified"

    def test_no_assets(self, tmp_path):
        done = CliRunner().invoke(app, ["bench", "nulls", "--assets", str(tmp_path)])
        assert isinstance(done.exception, SuspectError)


def test_verify_writes_a_page_once(tmp_path):
    page = tmp_path / "new" / "report.html"
    words = ["verify", str(ASSETS / "marked"), "--key", str(ASSETS / "demo.key"), "--html", str(page)]
    assert CliRunner().invoke(app, words).exit_code == 0
    text = page.read_text()
    assert "verified" in text and text.count("data:image/png;base64,") == 4
    assert WatermarkRecord.load(ASSETS / "marked").sha256 in text
    assert isinstance(CliRunner().invoke(app, words).exception, OutputExistsError)
    assert page.read_text() == text
