"""A site's direction and its parts."""

import numpy as np
from _carried import KEY, text_unet
from torch import nn

from aiao_diffusers import WatermarkKey
from aiao_diffusers.lineage.site import Part, bias_fails, direction
from aiao_diffusers.lineage.sites import plan_carrier


def test_directions_follow_key_site_and_beacon():
    site, other = plan_carrier(text_unet()).sites[:2]
    own = direction(KEY, site)
    assert own.sum() == 0 and set(own.tolist()) == {-1, 1}
    for different in (
        direction(KEY, other),
        direction(WatermarkKey(bytes(32), "Demo"), site),
        direction(KEY.drawn_with(bytes(32)), site),
    ):
        assert 8 < (own == different).sum() < 56
    assert np.array_equal(own, direction(WatermarkKey(KEY.secret, "another name"), site))


def test_a_part_knows_its_module():
    assert Part("blocks.0.norm1.linear.bias", 3, 6).module == "blocks.0.norm1.linear"
    assert Part("scale_shift_table", 0, 2).module == ""


def test_layers_without_a_bias_say_so():
    assert bias_fails(nn.Linear(2, 2), "to_q") is None
    assert bias_fails(nn.Linear(2, 2, bias=False), "to_q") == "to_q has no bias"
    assert bias_fails(nn.Identity(), "norm2") == "norm2 is Identity, which has no weight"
    assert bias_fails(None, "norm2") == "norm2 is NoneType, which has no weight"
