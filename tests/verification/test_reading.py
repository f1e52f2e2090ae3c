"""What a report says of an open suspect: the look that came nearest, and what a reader of the figures must know."""

import dataclasses
import math

import pytest
from _tiny import tiny_unet

from aiao_diffusers import WatermarkKey, verify
from aiao_diffusers.denoiser.sites import Site
from aiao_diffusers.errors import NotTestableError
from aiao_diffusers.stats.hits import combined_log10_p
from aiao_diffusers.verification.plan import ReadingPlan
from aiao_diffusers.verification.plan_run import Offers
from aiao_diffusers.verification.reading import OWN_COPY, read_suspect
from aiao_diffusers.verification.suspect import Suspect


KEY = WatermarkKey(bytes(range(32)), "Demo")
PLAN = ReadingPlan(trials=1, amplitudes=(1.0,), whiten=False)


def read(record, unet=None, plan=PLAN, key=KEY, **fields):
    found = Suspect(unet or tiny_unet(), "x", None, **({"proves": "descent", "record": None} | fields))
    return read_suspect(found, key, record, Offers(), plan, None)


class TestWarnings:
    def test_sites_that_only_one_of_record_and_suspect_has_are_counted(self, record):
        assert not any("layout" in text for text in read(record).warnings)
        last = len(record.layout) - 1
        other = (*record.layout[:last], Site("elsewhere.attn1", last, *([record.layout[last].width_in] * 2)))
        report = read(dataclasses.replace(record, layout=other))
        told = (
            f"of the {len(other)} sites in the record's layout the suspect lacks 1, and it has 1 that are not listed"
        )
        assert any(text.startswith(told) for text in report.warnings)

    def test_a_record_of_another_key_and_the_suspects_own_copy_are_said(self, record):
        report = read(record, key=KEY.child("x"), own_record=True)
        assert any("commits to another key" in text for text in report.warnings)
        assert set(OWN_COPY) <= set(report.warnings) and report.hashes["commitment"] == KEY.child("x").commitment
        assert not set(OWN_COPY) & set(read(record).warnings)

    def test_a_base_that_is_not_the_marked_model_is_said(self, record):
        marked = dataclasses.replace(record, marked_sha256="a" * 64)
        for sha256, told in (("a" * 64, True), ("b" * 64, False)):
            report = read(marked, hashes={"suspect": "c" * 64, "base": sha256}, proves="carries")
            assert report.source["base"]["matches_record"] is told and report.hashes["suspect"] == "c" * 64
            assert any("another SHA-256" in text for text in report.warnings) is not told


def test_weights_that_are_not_finite_raise(record):
    unet = tiny_unet()
    unet.conv_in.weight.data[0] = math.nan
    with pytest.raises(NotTestableError, match="NaN or Inf"):
        read(record, unet)


class TestLooks:
    @pytest.mark.slow
    def test_an_unmarked_models_figures_are_of_the_look_that_came_nearest(self, record):
        seen = set()
        for seed in range(16):
            report = verify(tiny_unet(), KEY, record=record, trials=1, seed=seed)
            nearest = min(report.looks, key=lambda look: (look["log10_p_adjusted"], look["log10_p"]))
            by_ranks = any("by rank scores" in text for text in report.warnings)
            assert by_ranks == nearest["label"].endswith(("ranks", "whitened"))
            assert report.controls["wrong_response"]["n"] == (20 if by_ranks else 100)
            if not by_ranks:
                together = combined_log10_p([(t.channels, t.channels // 2, t.hits) for t in report.sites])
                assert together == pytest.approx(nearest["log10_p"])
            seen.add(by_ranks)
        assert seen == {True, False}
