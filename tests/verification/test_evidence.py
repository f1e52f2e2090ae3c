"""The looks of a verdict, and the sites that they read."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from _tiny import tiny_unet
from torch import nn

from aiao_diffusers import LatentData, WatermarkKey, verify
from aiao_diffusers.denoiser.sites import trace
from aiao_diffusers.errors import NotTestableError
from aiao_diffusers.mark.selection import choose
from aiao_diffusers.verification import plan_run
from aiao_diffusers.verification.evidence import Evidence, EvidenceReader, key_sites
from aiao_diffusers.verification.plan import ReadingPlan
from aiao_diffusers.verification.plan_run import Offers, PlanRun


KEY = WatermarkKey(bytes(range(32)), "Demo")


def conditional():
    unet = tiny_unet(cross=8)
    return unet, torch.randn(2, 4, 8, 8), {"encoder_hidden_states": torch.randn(2, 3, 8)}


def run(unet, x, keywords):
    with torch.no_grad():
        return unet(x, torch.tensor([5, 500]), **keywords).sample


class Renamed(nn.Module):
    """Computes as the attention inside, but the site's name is gone."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def without(unet, names):
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(unet.get_submodule(parent), leaf, Renamed(unet.get_submodule(name)))
    return unet


def chosen(record):
    return choose(list(record.layout), KEY, record.in_sites, record.out_sites)


class TestFirstTrial:
    def test_only_the_first_trial_of_a_wide_model_ends_early(self, monkeypatch):
        seen = []
        monkeypatch.setattr(plan_run, "FIRST_CHANNELS", 8)
        unet, x, keywords = conditional()
        sites = trace(unet, lambda: run(unet, x, keywords))
        ins, outs = tuple(sites[:1]), tuple(sites[-3:])
        bank = LatentData(x, keywords)
        record = SimpleNamespace(
            bank=bank, kappa=1.0, pairs=False, factors={}, timesteps=1000, noised=lambda x, noise, t: x + noise
        )
        add = Evidence.add
        monkeypatch.setattr(Evidence, "add", lambda self, path, got: (seen.append(len(got)), add(self, path, got))[1])
        plan = ReadingPlan(trials=2, amplitudes=(1.0,), whiten=False)
        PlanRun(plan, EvidenceReader(KEY, record, ins, outs, 0), unet, Offers()).run()
        assert seen == [1, 3]


class TestFewerSites:
    def test_all_there(self, record):
        assert key_sites(tiny_unet(), KEY, record) == chosen(record)
        report = verify(tiny_unet(), KEY, record=record, trials=1)
        assert report.verdict == "not_verified" and len(report.sites) == 3
        assert not any("in-sites" in text for text in report.warnings)

    @pytest.mark.slow
    def test_reads_on_those_that_match_and_says_how_many(self, record):
        ins, outs = chosen(record)
        suspect = without(tiny_unet(), [ins[0].name, outs[1].name])
        assert key_sites(suspect, KEY, record) == (ins[1:], (outs[0], outs[2]))
        report = verify(suspect, KEY, record=record, trials=1)
        assert [s.name for s in report.sites] == [outs[0].name, outs[2].name]
        assert any("1 of the key's 2 in-sites and 2 of its 3 out-sites" in text for text in report.warnings)

    def test_below_the_minimum_is_refused(self, record):
        ins, outs = chosen(record)
        for names in ([s.name for s in ins], [s.name for s in outs[:2]]):
            report = verify(without(tiny_unet(), names), KEY, record=record)
            assert report.verdict == "not_testable" and "at least 50% of each are needed" in report.reason
            assert report.log10_p is None and report.proves == "nothing"

    def test_record_without_layout_wants_every_site(self, record):
        old = dataclasses.replace(record, layout=None)
        assert key_sites(tiny_unet(), KEY, old) == chosen(record)
        renamed = without(tiny_unet(), [record.layout[0].name])
        assert key_sites(renamed, KEY, old)[1] == chosen(record)[1]  # as many sites: the count cannot tell
        renamed.mid_block = None
        with pytest.raises(NotTestableError, match="6 attention sites, the record names 8"):
            key_sites(renamed, KEY, old)


class TestLooks:
    def test_a_trigger_that_overflows_ends_its_own_looks_only(self, record):
        report = verify(tiny_unet(), KEY, record=record, trials=1, amplitudes=(1.0, 3e38, 2.0))
        assert [look["label"] for look in report.looks] == [
            f"amplitude {seen}" for seen in ("x1", "x1, ranks", "x1, whitened", "x2", "x2, ranks")
        ]
        assert report.verdict == "not_verified"
        assert any("'amplitude x3e+38' ended early" in text for text in report.warnings)
        alone = verify(tiny_unet(), KEY, record=record, trials=1, amplitudes=(3e38,))
        assert alone.verdict == "not_testable" and "overflows" in alone.reason

    def test_the_whitened_look_can_be_left_out(self, record):
        costs = {}
        for whiten in (True, False):
            report = verify(tiny_unet(), KEY, record=record, trials=2, whiten=whiten)
            assert whiten == any(look["label"].endswith("whitened") for look in report.looks)
            costs[whiten] = report.denoiser_evals
        assert costs == {True: 3 * 2 * 2 + 80, False: 3 * 2 * 2}
