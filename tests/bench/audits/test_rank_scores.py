"""Whitened ranks read deeper what merging left, and nothing in controls."""

import copy

import pytest
import torch
from _kind import FULL
from _shipped import ASSETS

from aiao_diffusers import WatermarkKey
from aiao_diffusers.bench.audits.rank_scores import read
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.mark.record import WatermarkRecord
from aiao_diffusers.verification.suspect import open_suspect


KEY = WatermarkKey(bytes(range(32)), "Demo")
SEEDS = range(3 if FULL else 1)


@pytest.mark.slow
class TestWhitened:
    def test_reads_what_merging_left_and_nothing_in_controls(self):
        record = WatermarkRecord.load(ASSETS / "marked")
        base, marked = (load_denoiser(ASSETS / name, dtype=torch.float32) for name in ("base", "marked"))
        merged = copy.deepcopy(marked)
        with torch.no_grad():
            for p, clean in zip(merged.parameters(), base.parameters(), strict=True):
                p.lerp_(clean, 0.5)

        def ranks(suspect, key, seed):
            return [found.rank_log10_p() for found in read(suspect, key, record, trials=8, seed=seed)]

        plain, whitened = zip(*(ranks(merged, KEY, seed) for seed in SEEDS), strict=True)
        assert max(whitened) < -8 and max(plain) < -8
        with open_suspect(ASSETS / "lora", ASSETS / "base") as same_lora:
            controls = [(base, KEY), (merged, KEY.child("wrong")), (same_lora.denoiser, KEY)]
            assert all(ranks(suspect, key, seed)[1] > -5 for suspect, key in controls for seed in SEEDS)
