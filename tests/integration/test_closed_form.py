"""A mark in closed form on the real base: verdicts with their controls, and what it costs."""

import pytest
from _shipped import ASSETS

from aiao_diffusers import EmbedConfig, LatentData, WatermarkedStableDiffusionPipeline, WatermarkKey, verify
from aiao_diffusers.bench.attacks.finetune import full
from aiao_diffusers.embedding import closed_form


KEY = WatermarkKey(bytes(range(1, 33)), "Test")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def edited():
    pipe = WatermarkedStableDiffusionPipeline.from_pretrained(ASSETS / "base")
    data = LatentData.load(ASSETS / "latents" / "noto.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closed_form, "SAMPLES", 48)  # in place of 128 a site, half of the time of this file
        report = pipe.embed(KEY, data, EmbedConfig(steps=0, edit=1.5, max_price=0.005))
    return pipe, report


def asked(suspect, record, key=KEY, **options):
    return verify(suspect, key, record=record, early_stop=False, **options)


def test_verifies_and_its_controls_do_not(edited):
    pipe, report = edited
    assert 0 < report.price <= 0.005 and report.seconds < 300
    assert asked(pipe, report.record).log10_p < -30
    for suspect, key, options in (
        (ASSETS / "base", KEY, {}),
        (pipe, KEY.child("wrong"), {}),
        (ASSETS / "lora", KEY, {"base": ASSETS / "base"}),
        (ASSETS / "marked", KEY, {}),
    ):
        control = asked(suspect, report.record, key, **options)
        assert control.verdict == "not_verified" and control.log10_p > -5
    assert asked(ASSETS / "lora", report.record, base=pipe).verified


def test_outlives_a_short_fine_tune(edited):
    pipe, report = edited
    style = LatentData.load(ASSETS / "latents" / "twemoji.safetensors")
    tuned = full(pipe.unet, style, pipe.scheduler, steps=15, lr=1e-4, batch_size=8, seed=0)
    assert asked(tuned, report.record).log10_p < -30
