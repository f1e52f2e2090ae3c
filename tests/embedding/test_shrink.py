"""Shrinking to a price: the change is given up in shares until it costs no more."""

from types import SimpleNamespace

import pytest
import torch
from _tiny import learner

from aiao_diffusers import EmbedConfig
from aiao_diffusers.embedding.shrink import ROUNDS, PriceMeter, shrink_to_price
from aiao_diffusers.embedding.subject import Subject
from aiao_diffusers.embedding.weight_change import StoredWeights
from aiao_diffusers.errors import TrainingError


def changed_learner():
    unet, data, scheduler = learner()
    meter = PriceMeter(Subject(unet, scheduler, data, (), EmbedConfig()))
    update = StoredWeights(unet, [name for name, _ in unet.named_parameters()])
    assert meter.measure() == 0
    with torch.no_grad():
        for p in update.parameters.values():
            p.mul_(1.05)
    return update, meter


def test_a_change_ends_below_the_price_and_is_not_given_up():
    update, meter = changed_learner()
    dear = meter.measure()
    price = shrink_to_price(update, meter, dear / 10)
    assert 0.5 * dear / 10 < price <= dear / 10 and price == pytest.approx(meter.measure())
    update.release()


@pytest.mark.parametrize("max_price", [None, 10.0])
def test_a_change_that_costs_no_more_stays_whole(max_price):
    update, meter = changed_learner()
    before = [p.clone() for p in update.parameters.values()]
    shrink_to_price(update, meter, max_price)
    assert all(torch.equal(a, b) for a, b in zip(before, update.parameters.values(), strict=True))
    update.release()


def test_a_price_that_is_not_finite_or_does_not_fall_stops():
    shares = []
    update = SimpleNamespace(shrink=shares.append)
    with pytest.raises(TrainingError, match="not finite"):
        shrink_to_price(update, SimpleNamespace(measure=lambda: float("nan")), 0.1)
    assert shares == []
    with pytest.raises(TrainingError, match="the price stays at"):
        shrink_to_price(update, SimpleNamespace(measure=lambda: 1.0), 0.1)
    assert len(shares) == ROUNDS
