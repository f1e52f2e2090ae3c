"""A leaf of a marked miniature reads by itself, and whoever trains it away leaves the other leaves."""

import copy

import pytest
from _tiny import learner, mark_bound
from diffusers import DDPMPipeline

from aiao_diffusers import WatermarkKey
from aiao_diffusers.bench.audits import leaves
from aiao_diffusers.bench.audits.leaves import Models, markdown, measure_away, read_leaves, read_whole, run, train_away
from aiao_diffusers.bench.context import AttackContext
from aiao_diffusers.errors import LeafError
from aiao_diffusers.protocol.leaves import disclose, open_leaf
from aiao_diffusers.verification.plan import ReadingPlan


KEY = WatermarkKey(bytes(range(32)), "Demo")


@pytest.fixture(scope="module")
def marked(once):
    return once("bound60", lambda: mark_bound(steps=60, out_sites=4))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(leaves, "PLAN", ReadingPlan(amplitudes=(1.0,), whiten=False, early_stop=False))


@pytest.mark.slow
class TestLeaves:
    def test_each_proves_something_and_less_than_the_key(self, marked):
        unet, record = marked
        whole, parts = read_whole(unet, KEY, record, 0), read_leaves(unet, KEY, record, 0)
        assert len(parts) == 2 and whole < min(parts) < -1
        clean = learner()[0]
        assert read_whole(clean, KEY, record, 0) > -3 < min(read_leaves(clean, KEY, record, 0))

    def test_training_one_away_costs_that_one(self, marked, tmp_path):
        unet, record = marked
        clean, data, scheduler = learner()
        context = AttackContext(DDPMPipeline(clean, scheduler), data, data, 0, tmp_path)
        before = read_leaves(unet, KEY, record, 0)
        leaf = open_leaf(disclose(KEY, record, 1), record)
        (site,), outs = leaf.sites(list(record.layout))
        left = train_away(copy.deepcopy(unet), leaf, (site, outs), record, context, steps=40, lr=3e-3)
        assert read_leaves(left, KEY, record, 0)[0] > before[0] / 2
        away = measure_away(context, unet, KEY, record, steps=2, lr=1e-5)
        for who in ("holder", "control"):
            assert away[who]["share"] > 0.8 and len(away[who]["leaves"]) == len(before)
        assert 1 <= away["leaf"] <= len(before)
        rows = [{"model": "marked", "whole": away["before"], "leaves": before}]
        sites = [["a", ["b", "c"]], ["d", ["e"]]]
        text = markdown({"sites": sites, "seed": 0, "trials": 8, "rows": rows, "away": away})
        assert (
            "| marked |" in text and "| another key's, as control |" in text and "out-sites of each leaf: 2, 1" in text
        )


def test_a_mark_without_leaves_is_refused(tmp_path, scene):
    scene.honest.unbound().save(tmp_path)
    KEY.save(tmp_path / "a.key")
    with pytest.raises(LeafError, match="--marked"):
        run(tmp_path, models=Models(marked=tmp_path, key=tmp_path / "a.key"))
