"""A carrier changes nothing that can be measured in float32, a coarse change is seen, and differences have their interval."""

import math
from dataclasses import replace

import pytest
import torch
from _lineage import SHORT, example, shorten

from aiao_diffusers.bench.audits import lineage_price as price
from aiao_diffusers.bench.audits.lineage_models import Models
from aiao_diffusers.bench.audits.lineage_price import measure_curve, measure_prices, paired_difference, price_keys


@pytest.fixture
def models(tmp_path, monkeypatch) -> Models:
    shorten(monkeypatch)
    for name, value in (("SAMPLES", 4), ("FEW", 2), ("HELD_OUT_DRAWS", 4), ("CURVE_STEPS", (1, 2))):
        monkeypatch.setattr(price, name, value)
    return Models(example(tmp_path / "example"), tmp_path / "run")


@pytest.mark.slow
def test_the_price_is_that_of_rounding_and_a_coarse_change_is_seen(models, monkeypatch):
    ticks = []
    (told,) = price_keys(models, ["base"], [0], lambda: ticks.append(1))
    assert (told["kind"], told["key"], len(ticks)) == ("base", 0, 1)
    assert told["price"] < 1e-6 and 0 < told["largest"] < 1e-2 and 0 < told["merged"] < 0.05
    for half in told["halves"].values():
        assert 0.3 < half["price"] / half["rounding"] < 3 and half["rounding"] > told["price"]
    real = models.carrier("base", 0)
    with torch.no_grad():
        real.conv_in.weight.mul_(1.5)
    monkeypatch.setattr(Models, "carrier", lambda *given: real)
    assert measure_prices(models, "base", 0)["price"] > 1e-4


@pytest.mark.slow
def test_a_curve_begins_with_the_model_and_is_the_same_again(models):
    cell = replace(SHORT, lr=0.05)
    first, again, other = (measure_curve(models, side, 1, cell) for side in ("twin", "twin", "carrier"))
    assert first == again and [row["steps"] for row in first] == [0, 1, 2]
    assert first[0]["loss"] == pytest.approx(other[0]["loss"], rel=1e-5)
    assert len({row["loss"] for row in first}) == 3


def test_the_difference_by_hand():
    told = paired_difference([(1.0, 1.1), (1.0, 1.3), (1.0, 1.2)])
    assert told["n"] == 3 and told["mean"] == pytest.approx(0.2)
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # qt(0.975, 2) in R
    assert told["high"] - told["mean"] == pytest.approx(half) == told["mean"] - told["low"]
    assert math.isnan(paired_difference([(1.0, 2.0)])["low"])
