"""The looks of a verdict, and the sites that they read."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from _tiny import tiny_unet
from torch import nn

from aiao_diffusers import LatentData, WatermarkKey, verify
from aiao_diffusers.denoiser.schedule import noise_schedule
from aiao_diffusers.denoiser.sites import trace
from aiao_diffusers.errors import NotTestableError, RecordError
from aiao_diffusers.mark.reading import Reading
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
            **{"bank": bank, "kappa": 1.0, "pairs": False, "factors": {}, "timesteps": 1000, "layout": None},
            noised=lambda x, noise, t: x + noise,
            schedule=noise_schedule({}),
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


class TestTies:
    """A response that leaves the split to the order of channels is no evidence, whatever the key."""

    def test_an_out_site_that_answers_alike_everywhere_is_left_out(self):
        alone, both = Evidence(KEY), Evidence(KEY)
        d = torch.randn(8)
        subpath = SimpleNamespace(in_sites=())
        alone.add(subpath, [Reading("b", d)])
        both.add(subpath, [Reading("a", torch.full((8,), 0.3)), Reading("b", d)])
        assert both.log10_p() == alone.log10_p() and both.rank_log10_p() == alone.rank_log10_p()
        assert [test.name for test in both.tests()] == ["b"] and both.trial_bits == alone.trial_bits
        assert list(both.whitened_by({}).response_sum) == ["b"]

    def test_where_all_do_nothing_is_testable(self, record, monkeypatch):
        # As a gain of 1e-300 made it, which no record may name any more.
        monkeypatch.setattr(type(record), "factors", property(lambda self: {s.name: 1e-300 for s in self.layout}))
        for key in (KEY, KEY.child("another")):
            report = verify(tiny_unet(), key, record=record, trials=1, amplitudes=(1.0,), whiten=False)
            assert report.verdict == "not_testable" and "ties would decide" in report.reason and report.log10_p is None

    def test_some_trials_without_evidence_end_nothing(self):
        seen, subpath = Evidence(KEY), SimpleNamespace(in_sites=())
        seen.add(subpath, [Reading("a", torch.zeros(8))])
        assert seen.trial_log10_p == [0.0] and seen.log10_p() == seen.rank_log10_p() == 0.0 and seen.tests() == ()
        seen.add(subpath, [Reading("a", torch.randn(8))])
        assert len(seen.tests()) == 1


class TestClaimedLayout:
    def claim(self, record, names):
        sites = [
            dataclasses.replace(s, name=name, order=n)
            for n, (s, name) in enumerate(zip(record.layout, names, strict=True))
        ]
        return dataclasses.replace(record, layout=tuple(sites))

    def test_in_another_order_is_refused(self, record):
        names = [site.name for site in record.layout]
        for claimed in (names[::-1], [*names[1:], names[0]], [names[1], names[0], *names[2:]]):
            with pytest.raises(RecordError, match="another order"):
                verify(tiny_unet(), KEY, record=self.claim(record, claimed), trials=8, amplitudes=(1.0,), whiten=False)

    def test_with_sites_that_nobody_has_is_flagged(self, record):
        names = [site.name for site in record.layout]
        claimed = self.claim(record, ["nobody", *names[1:]])
        report = verify(tiny_unet(), KEY, record=claimed, trials=1, amplitudes=(1.0,), whiten=False)
        assert any("lacks 1, and it has 1 that are not listed" in text for text in report.warnings)
        honest = verify(tiny_unet(), KEY, record=record, trials=1, amplitudes=(1.0,), whiten=False)
        assert not any("listed" in text for text in honest.warnings)

    def test_with_more_sites_asked_for_than_listed_is_typed(self, record):
        for field in ("in_sites", "out_sites"):
            with pytest.raises(RecordError, match="counts do not fit"):
                verify(tiny_unet(), KEY, record=dataclasses.replace(record, **{field: 9}))


class TestReasons:
    def test_do_not_tell_what_the_key_uses(self, record):
        ins, outs = chosen(record)
        reasons = {
            verify(without(tiny_unet(), [s.name for s in lost]), KEY, record=record).reason
            for lost in (outs, [outs[0], outs[1], ins[0]])
        }
        assert len(reasons) == 1  # as many sites are gone, whichever the key has among them
        wide = dict(tiny_unet().config) | {"block_out_channels": (16, 32)}
        reason = verify(type(tiny_unet()).from_config(wide).eval(), KEY, record=record).reason
        assert not any(site.name in reason for site in record.layout)

    def test_own_copy_is_said_where_nothing_can_be_read(self, record):
        suspect = without(tiny_unet(), [s.name for s in chosen(record)[0]])
        holder = SimpleNamespace(unet=suspect, record=record)
        report = verify(holder, KEY)
        assert report.verdict == "not_testable" and any("own copy of the record" in text for text in report.warnings)
        assert not verify(holder, KEY, record=record).warnings
