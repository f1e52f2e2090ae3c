"""The one look reads each key as if it were alone, and its law is known; a law that is broken is seen."""

import numpy as np
import pytest
import torch

from aiao_diffusers.bench.audits import forgery_draws
from aiao_diffusers.bench.audits.forgery_draws import beacons_of, draw_inputs, law_of_draws, read_ranks, read_responses
from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.mark.reading import read_subpath
from aiao_diffusers.mark.selection import choose
from aiao_diffusers.mark.subpath import draw
from aiao_diffusers.stats.ranks import rank_log10_p, rank_site


def test_beacons_are_the_same_for_all_and_never_twice():
    first = beacons_of("a", 50, 0)
    assert first == beacons_of("a", 50, 0)
    others = (*beacons_of("b", 50, 0), *beacons_of("a", 50, 1))
    assert len({beacon.randomness for beacon in (*first, *others)}) == 150


@pytest.mark.slow
def test_a_key_among_others_reads_as_it_does_alone(scene, monkeypatch):
    claim, unet = scene.honest, scene.denoiser
    keys = [claim.key, *(claim.key.drawn_with(b.randomness) for b in beacons_of("a", 4, 0))]
    record, sites = claim.unchecked(), list(claim.fields["layout"])
    path = draw(*choose(sites, keys[0], 1, 3), np.random.default_rng(3))
    inputs = draw_inputs(record, unet, torch.Generator().manual_seed(3))
    with instrument(unet, [site.name for site in sites], record.factors) as wired:
        alone = {r.site: r.d.double().numpy() for r in read_subpath(wired, keys[0], path, record.kappa, inputs)}
    monkeypatch.setattr(forgery_draws, "BATCH", 2)
    found = read_responses(unet, claim, keys, trials=1, seed=3)
    assert found[0].keys() == alone.keys() and len(found) == 5
    assert all(np.allclose(found[0][name], d, atol=1e-5) for name, d in alone.items())
    p = rank_log10_p([rank_site(d, keys[0].response_pattern(name, len(d))) for name, d in found[0].items()])
    assert read_ranks(unet, claim, keys, trials=1, seed=3)[0] == p


class TestLaw:
    def test_uniform_ones_pass(self):
        law = law_of_draws(np.log10((np.arange(200) + 0.5) / 200))
        assert law["draws"] == 200 and law["ks_p"] > 0.9 and law["ks_p_small"] > 0.9 and law["verdicts"] == 0
        low, high = law["expected"]
        assert low < law["smallest"] < high

    def test_small_ones_and_a_verdict_are_seen(self):
        p = np.random.default_rng(0).random(200) ** 1.5
        assert law_of_draws(np.log10(p))["ks_p_small"] < 0.01
        assert law_of_draws([-7.0, *np.log10(np.random.default_rng(1).random(99))])["verdicts"] == 1

    def test_large_ones_are_not_held_against_it(self):
        p = np.random.default_rng(0).random(200) ** 0.5
        law = law_of_draws(np.log10(p))
        assert law["ks_p"] < 0.01 and law["ks_p_small"] > 0.5

    def test_the_range_holds_the_smallest_of_uniform_ones(self):
        random = np.random.default_rng(2)
        low, high = law_of_draws(np.log10(random.random(100)))["expected"]
        smallest = np.log10(random.random((2000, 100)).min(1))
        assert 0.93 < ((smallest > low) & (smallest < high)).mean() < 0.97
