"""What half precision costs: figures beside the rounding that any model pays, and dtypes that come back."""

import copy

import pytest
import torch
from _carried import carry, latents, text_unet
from _tiny import same, weights
from torch import nn

from aiao_diffusers.errors import SiteError
from aiao_diffusers.lineage import carrier
from aiao_diffusers.lineage.rounding import HALVES, RoundingCost, _move, in_float32


def test_the_price_of_a_carrier_is_below_that_of_rounding_and_both_are_told():
    report = carry(text_unet())
    assert report.rounded.keys() == {"bfloat16", "float16"}
    for cost in report.rounded.values():
        assert not cost.exact and 0 < cost.price < cost.rounding < 1e-3
        assert 0 < cost.largest_difference < 0.1
    assert report.rounded["float16"].rounding < report.rounded["bfloat16"].rounding / 10
    assert report.price < 1e-11 and report.dtype == "float32"
    assert (
        "rounding alone" in report.in_words and "24 sites carry" in report.in_words and "0 places" in report.in_words
    )


def trained() -> nn.Module:
    """With norms that are not 1 and 0, which no rounding moves."""
    unet = text_unet()
    for module in unet.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    return unet


@pytest.mark.parametrize("dtype", list(HALVES))
def test_weights_that_are_rounded_already_are_told_what_as_much_would_cost(dtype):
    wide = carry(trained()).rounded[str(dtype)[6:]]
    for given in (trained().to(dtype), trained().to(dtype).float()):
        before = copy.deepcopy(given).state_dict()
        report = carry(given)
        cost = report.rounded[str(dtype)[6:]]
        assert cost.exact and not report.rounded[str(next(d for d in HALVES if d != dtype))[6:]].exact
        assert cost.rounding == pytest.approx(wide.rounding, rel=0.5)
        assert cost.price < cost.rounding
        after = given.state_dict()
        assert all(after[name].dtype == value.dtype for name, value in before.items())
        assert all(torch.equal(after[name], value) for name, value in before.items() if "to_k" in name)


def test_a_carrier_that_costs_more_than_rounding_is_refused_and_nothing_is_kept(monkeypatch):
    unet = text_unet().half()
    before = weights(unet)
    costs = {torch.float16: RoundingCost(2e-6, 1.0, 1e-6, exact=True)}
    monkeypatch.setattr(carrier, "measure_costs", lambda *args: costs)
    with pytest.raises(SiteError, match="in float16 .* Load the weights in float32"):
        carry(unet)
    assert same(before, weights(unet))
    costs[torch.float16] = RoundingCost(float("nan"), 1.0, 1e-6, exact=True)
    with pytest.raises(SiteError, match="in float16"):
        carry(unet)
    costs[torch.float16] = RoundingCost(2e-6, 1.0, 1e-6, exact=False)  # the weights are not in it
    assert carry(unet).sites


@pytest.mark.parametrize("dtype", list(HALVES))
def test_moved_weights_lie_one_step_away_and_as_far_as_rounding_in_the_mean(dtype):
    wide = torch.randn(400_000, generator=torch.Generator().manual_seed(1)) + 0.01
    given = wide.to(dtype).float()
    moved = _move(dtype)(given)
    assert torch.equal(moved, moved.to(dtype).float())
    assert 0.07 < (moved != given).float().mean() < 0.095
    assert float((moved - given).square().mean()) == pytest.approx(float((wide - given).square().mean()), rel=0.05)
    assert torch.equal(_move(dtype)(torch.zeros(9)), torch.zeros(9))


def test_dtypes_come_back_whatever_happens():
    unet = text_unet().half()
    unet.conv_in.float()
    before = weights(unet)
    with pytest.raises(KeyboardInterrupt), in_float32(unet):
        assert {p.dtype for p in unet.parameters()} == {torch.float32}
        unet(latents().latents[:1], torch.tensor([1]), latents().conditioning["encoder_hidden_states"][:1])
        raise KeyboardInterrupt
    assert same(before, weights(unet))
    assert {p.dtype for p in unet.parameters()} == {torch.float16, torch.float32}
