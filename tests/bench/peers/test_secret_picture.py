"""The secret picture that a trigger calls up."""

import numpy as np
import pytest
from _peers import KEY

from aiao_diffusers.bench.peers.secret_picture import pattern
from aiao_diffusers.bench.registry import METHODS
from aiao_diffusers.errors import ConfigError


def test_the_secret_picture_is_balanced_and_the_key_s_own():
    assert pattern(KEY).shape == (64,) and pattern(KEY).sum() == 0
    assert not np.array_equal(pattern(KEY), pattern(KEY.child("other")))


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="must be positive"):
        METHODS["fixedwm"](steps=0)
