"""Null p-values: of many keys at once, uniform, and a leak would show."""

import dataclasses

import numpy as np
import pytest
import torch
from _shipped import ASSETS
from _tiny import learner
from scipy import stats

from aiao_diffusers import WatermarkKey, WatermarkRecord, verify
from aiao_diffusers.bench.audits import nulls
from aiao_diffusers.denoiser.call import CallInputs
from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.mark.reading import read_subpath
from aiao_diffusers.mark.subpath import sub_path
from aiao_diffusers.stats.hits import count_hits, randomised_p
from aiao_diffusers.verification.evidence import key_sites


KEY = WatermarkKey(bytes(range(32)), "Demo")


@pytest.fixture(scope="module")
def record():
    return WatermarkRecord.load(ASSETS / "marked")


@pytest.fixture(scope="module")
def marked():
    return load_denoiser(ASSETS / "marked", dtype=torch.float32)


@pytest.mark.parametrize("pairs", [True, False])
def test_readings_of_many_keys_at_once_are_those_of_one(begun, monkeypatch, pairs):
    unet, record = begun[0], dataclasses.replace(begun[1], pairs=pairs)
    # The same input and sub-path for every key, so that one key at a time can be read by `Wired.read`.
    bank = record.bank.take(torch.zeros(1, dtype=torch.long))
    record = dataclasses.replace(record, bank=bank)
    monkeypatch.setattr(nulls, "draw", lambda ins, outs, random: sub_path(ins, outs))
    monkeypatch.setattr(nulls, "probe_timesteps", lambda steps: (300, 301))
    monkeypatch.setattr(WatermarkRecord, "noised", lambda self, latents, noise, t: latents)
    keys = [KEY, KEY.child("a"), KEY.child("b")]
    found = list(nulls.readings(unet, record, keys, seed=0))
    for key, triples in zip(keys, found, strict=True):
        ins, outs = key_sites(unet, key, record)
        with instrument(unet, [site.name for site in (*ins, *outs)], record.factors) as wired:
            asked = bank.latents, torch.tensor([300]), bank.keywords()
            read = read_subpath(wired, key, sub_path(ins, outs), record.kappa, CallInputs(*asked), pairs=pairs)
        wanted = [count_hits(r.d.double().numpy(), key.response_pattern(r.site, len(r.d))) for r in read]
        # Rounding differs with the size of the batch, and may carry a channel across the median.
        assert all(a[:2] == b[:2] and abs(a[2] - b[2]) <= 2 for a, b in zip(triples, wanted, strict=True))


@pytest.mark.slow
def test_p_values_of_unmarked_models_are_uniform(begun):
    record = begun[1]
    keys = nulls.keys_of("pairs", 300, 0)
    random = np.random.default_rng(0)
    values = [randomised_p(triples, random.random()) for triples in nulls.readings(learner()[0], record, keys, seed=0)]
    assert stats.kstest(values, "uniform").pvalue > 1e-3


@pytest.mark.slow
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
