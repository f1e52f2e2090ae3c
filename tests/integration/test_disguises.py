"""Disguised descendants of the shipped model are verified by alignment; aligned unrelated models are not."""

import copy

import pytest
import torch
from _shipped import ASSETS

from aiao_diffusers import LatentData, WatermarkKey, verify
from aiao_diffusers.bench.attacks.disguise import disguise
from aiao_diffusers.bench.attacks.finetune import full
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.mark.record import WatermarkRecord
from aiao_diffusers.verification.reference import observe


KEY = WatermarkKey(bytes(range(32)), "Demo")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models():
    return {n: load_denoiser(ASSETS / n, dtype=torch.float32) for n in ("base", "marked", "finetuned")}


@pytest.fixture(scope="module")
def record():
    return WatermarkRecord.load(ASSETS / "marked").as_read(reference_sha256=None)


@pytest.fixture(scope="module")
def reference(models, record):
    """The owner's own is private; the clean twin is shipped, so make one from it."""
    return observe(models["base"], record.bank, record.scheduler)


def ask(suspect, key, record, reference):
    return verify(suspect, key, record=record, reference=reference, trials=4)


@pytest.mark.parametrize("kind", ["permute+flip", "rotate+flip+shear"])
def test_disguised_fine_tune(models, record, reference, kind):
    seen = ask(disguise(copy.deepcopy(models["finetuned"]), kind), KEY, record, reference)
    assert seen.verdict == "verified" and seen.log10_p < -12
    assert seen.looks[-1]["label"] == "aligned x1"
    assert min(look["log10_p_adjusted"] for look in seen.looks[:-1]) > -5  # plain looks alone see nothing


def test_permuted_then_fine_tuned(models, record, reference):
    suspect = disguise(copy.deepcopy(models["marked"]), "permute")
    style = LatentData.load(ASSETS / "latents" / "twemoji.safetensors")
    full(suspect, style, record.scheduler, steps=8, lr=1e-4, batch_size=8)
    seen = ask(suspect, KEY, record, reference)
    assert seen.verdict == "verified" and seen.log10_p < -60 and seen.looks[-1]["label"] == "aligned x1"


@pytest.mark.parametrize("name", ["base", "disguised base", "random weights", "wrong key"])
def test_unrelated_models_stay_null(models, record, reference, name):
    suspect, key = models["base"], KEY
    if name == "disguised base":
        suspect = disguise(copy.deepcopy(suspect), "rotate+flip")
    if name == "random weights":
        torch.manual_seed(0)
        suspect = type(suspect).from_config(suspect.config)
    if name == "wrong key":
        suspect, key = disguise(copy.deepcopy(models["marked"]), "permute"), KEY.child("wrong")
    seen = ask(suspect, key, record, reference)
    assert seen.verdict == "not_verified" and seen.log10_p > -5 and seen.looks[-1]["label"] == "aligned x4, ranks"
