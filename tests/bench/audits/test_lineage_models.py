"""Carriers compute what their twins do, are made once, and what becomes of them is what it says."""

import pytest
import torch
from _lineage import example, shorten

from aiao_diffusers.bench.audits import lineage_models
from aiao_diffusers.bench.audits.lineage_models import Models, key_of, merge_into, round_to_int8
from aiao_diffusers.denoiser.price import compare_predictions, predictions


@pytest.fixture
def models(tmp_path, monkeypatch) -> Models:
    shorten(monkeypatch)
    return Models(example(tmp_path / "example"), tmp_path / "run")


def weights(denoiser):
    return torch.cat([value.flatten() for value in denoiser.state_dict().values()])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["base", "unconditional"])
def test_a_carrier_is_its_twin_in_other_weights_and_made_once(models, kind, monkeypatch):
    carrier, twin = models.model(kind, 1, "carrier"), models.model(kind, 1, "twin")
    data, scheduler = models.data(kind), models.scheduler(kind)
    both = [predictions(model, data, scheduler, samples=4)[0] for model in (twin, carrier)]
    assert compare_predictions(*both, torch.zeros_like(both[0]))["ratio"] < 1e-6
    assert not torch.equal(weights(carrier), weights(twin))
    assert not torch.equal(weights(carrier), weights(models.carrier(kind, 2)))
    monkeypatch.setattr(lineage_models, "add_carrier", None)  # a second one would fail
    assert torch.equal(weights(Models(models.assets, models.folder).carrier(kind, 1)), weights(carrier))


@pytest.mark.slow
def test_what_becomes_of_a_model(models):
    own, twin = weights(models.carrier("base", 0)), weights(models.twin("base"))
    half = weights(models.model("base", 0, "carrier", "merged 0.3"))
    torch.testing.assert_close(half, 0.3 * own + 0.7 * twin)
    rounded, tuned = (weights(models.model("base", 0, "carrier", name)) for name in ("int8", "fine-tuned"))
    assert 0 < float((rounded - own).abs().max()) < 0.02 and 0 < float((tuned - own).abs().max()) < 0.02
    assert torch.equal(tuned, weights(models.model("base", 0, "carrier", "fine-tuned")))
    assert torch.equal(twin, weights(models.model("base", 0, "twin", "merged 0.5")))


def test_rounding_and_merging_by_hand():
    layer, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    layer.weight.data = torch.tensor([[127.0, 3.4]])
    assert round_to_int8(torch.nn.Sequential(layer))[0].weight.tolist() == [[127.0, 3.0]]
    other.weight.data = torch.tensor([[1.0, 1.0]])
    assert merge_into(layer, other, 0.25).weight.tolist() == [[32.5, 1.5]]


def test_keys_differ():
    assert len({key_of(number).secret for number in range(3)}) == 3
