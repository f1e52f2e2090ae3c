"""The arithmetic of a shift: what moves, what is read of it, and that nothing is written before it is kept."""

import pytest
import torch
from _tiny import same, weights
from torch import nn

from aiao_diffusers.errors import NotTestableError
from aiao_diffusers.lineage.shift import Edit
from aiao_diffusers.lineage.site import Part


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        model[0].bias.copy_(torch.linspace(-3, 3, 12))
    return model


def test_a_part_is_moved_by_what_bfloat16_keeps_and_the_rest_stays():
    model, by = layers(), torch.tensor([0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    edit = Edit(model)
    moved = edit.shift(Part("0.bias", 1, 3), by, coarse=True)
    assert (moved - by).abs().max() < 0.01 and moved[1] == 0
    with edit.applied():
        new = model[0].bias.data.clone()
    old = model[0].bias.detach()
    assert torch.equal(new[:4], old[:4]) and torch.equal(new[8:], old[8:]) and torch.equal(new[5], old[5])
    assert torch.equal(new[[4, 6]], new[[4, 6]].bfloat16().float())
    assert torch.equal(edit.shift(Part("0.bias", 0, 3), by), by)


def test_rounding_never_eats_a_shift_that_is_small_beside_its_bias():
    model = layers()
    with torch.no_grad():
        model[0].bias.fill_(300.3)
    by = torch.full((4,), 0.01, dtype=torch.float64)
    assert torch.allclose(Edit(model).shift(Part("0.bias", 0, 3), by, coarse=True), by, rtol=0.05)


def test_a_bias_absorbs_and_edits_add_up():
    model, delta = layers(), torch.tensor([1.0, -1.0, 2.0, 0.0], dtype=torch.float64)
    x = torch.randn(2, 4, 5, 5)
    before = model[1](x)
    edit = Edit(model)
    edit.absorb("1", delta)
    edit.absorb("1", -delta / 2)
    with edit.applied():
        after = model[1](x + delta.float().view(1, 4, 1, 1) / 2)
    torch.testing.assert_close(before, after)


def test_weights_come_back_unless_kept():
    model = layers()
    old = weights(model)
    edit = Edit(model)
    edit.absorb("1", torch.ones(4, dtype=torch.float64))
    with pytest.raises(KeyboardInterrupt), edit.applied():
        assert not same(old, weights(model))
        raise KeyboardInterrupt
    assert same(old, weights(model))
    with edit.applied() as keep:
        keep()
    assert not same(old, weights(model))


def test_what_has_no_plain_value_is_refused():
    model = layers()
    assert Edit(model).value("0.bias2") is None and not Edit(model).has("1.bias2")
    model[1] = nn.Conv2d(4, 3, 1, device="meta")
    with pytest.raises(NotTestableError, match=r"1\.weight is quantised or offloaded"):
        Edit(model).absorb("1", torch.ones(4, dtype=torch.float64))
