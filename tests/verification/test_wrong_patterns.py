"""Patterns of nobody on the same readings: uniform on a model without the mark, and on one that carries it."""

import math

import numpy as np
import pytest

from aiao_diffusers import WatermarkKey
from aiao_diffusers.verification.wrong_patterns import wrong_responses


KEY = WatermarkKey(bytes(range(32)), "Demo")


def responses(mark: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal(128) + mark * KEY.response_pattern(name, 128) for name in ("a", "b", "c")}


@pytest.mark.parametrize("ranks", [False, True])
@pytest.mark.parametrize("mark", [0.0, 2.0])
def test_they_look_uniform_whatever_the_key_finds(mark, ranks):
    found = wrong_responses(responses(mark), KEY, ranks=ranks)
    assert found["n"] == len(found["hits"]) == (20 if ranks else 100)
    assert -0.7 < found["median_log10_p"] < -0.1 and found["smallest_log10_p"] > -math.log10(found["n"]) - 2
    assert found == wrong_responses(responses(mark), KEY, ranks=ranks)  # no draw but from the key


def test_a_response_that_fits_one_of_them_is_seen():
    """Planted fault: were the patterns related to the response, the smallest p would tell."""
    leaked = {name: KEY.child("control/3").response_pattern(name, 128).astype(float) for name in ("a", "b", "c")}
    found = wrong_responses(leaked, KEY, 10)
    assert found["smallest_log10_p"] < -50 and found["hits"][3] == 3 * 128 and max(np.delete(found["hits"], 3)) < 300
