"""Whitening: what wrong masks call up is weighed down, a pattern beneath it stays, and p stays exact."""

import numpy as np
import pytest

from aiao_diffusers.errors import ShapeError
from aiao_diffusers.stats.natural_response import orthogonal_to, whiten
from aiao_diffusers.stats.ranks import rank_log10_p, rank_site


WIDTH = 64


def pattern(rng, width=WIDTH):
    return rng.permutation(np.repeat([1, -1], [width // 2, width - width // 2]))


def natural(rng, count, directions):
    """Responses along a few loud directions, and a little in every channel."""
    return rng.normal(size=(count, len(directions))) @ directions + 0.1 * rng.normal(size=(count, WIDTH))


def test_uncovers_a_pattern_beneath_what_every_mask_calls_up():
    rng, gain, control = np.random.default_rng(0), [], []
    for _ in range(20):
        secret, directions = pattern(rng), 2 * rng.normal(size=(4, WIDTH))
        wrong = natural(rng, 64, directions)
        clean = natural(rng, 1, directions)[0]
        d = clean + 0.3 * secret
        before, after = (rank_log10_p([rank_site(x, secret)]) for x in (d, whiten(d, wrong)))
        gain.append(after - before)
        control.append(rank_log10_p([rank_site(whiten(clean, wrong), secret)]))
    assert np.median(gain) < -4
    assert np.median(control) > -1 and min(control) > -3


def assert_uniform(seen, rng):
    p = np.array([rank_log10_p([rank_site(seen, pattern(rng))]) for _ in range(2000)])
    for level in (0.5, 0.1, 0.02):
        share, error = np.mean(p <= np.log10(level)), (level * (1 - level) / 2000) ** 0.5
        assert abs(share - level) < 4 * error


@pytest.mark.slow
def test_is_uniform_under_the_null():
    """One suspect, many keys: the transform knows no response pattern."""
    rng = np.random.default_rng(1)
    directions = rng.standard_cauchy(size=(3, WIDTH))
    wrong, d = natural(rng, 16, directions), natural(rng, 1, directions)[0]
    assert_uniform(whiten(d, wrong), rng)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_order_of_channels_does_not_depend_on_the_unit(scale):
    rng = np.random.default_rng(2)
    wrong, d = rng.normal(size=(8, WIDTH)), rng.normal(size=WIDTH)
    assert np.argsort(whiten(d * scale, wrong * scale)).tolist() == np.argsort(whiten(d, wrong)).tolist()


def test_an_offset_common_to_all_masks_goes():
    rng = np.random.default_rng(3)
    wrong, d, offset = rng.normal(size=(8, WIDTH)), rng.normal(size=WIDTH), 100 * rng.normal(size=WIDTH)
    np.testing.assert_allclose(whiten(d + offset, wrong + offset), whiten(d, wrong), atol=1e-9)


def test_wrong_masks_that_move_nothing_or_are_too_few_leave_the_response():
    d = np.arange(4.0)
    assert whiten(d, np.zeros((8, 4))).tolist() == d.tolist()
    assert whiten(d, np.ones((1, 4))).tolist() == d.tolist()
    assert whiten(d, np.zeros((0, 4))).tolist() == d.tolist()


@pytest.mark.parametrize("shape", [(4,), (8, 3), (8, 4, 1)])
def test_widths_that_differ(shape):
    with pytest.raises(ShapeError, match="responses to wrong masks"):
        whiten(np.zeros(4), np.zeros(shape))


def test_beyond_the_twin_a_pattern_is_uncovered_whatever_share_of_the_twin_is_left():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 0.9, 1.0):
        secret, clean = pattern(rng), 5 * rng.normal(size=WIDTH)
        d = share * clean + 0.3 * secret + 0.1 * rng.normal(size=WIDTH)
        left = orthogonal_to(d, clean)
        assert abs(left @ clean) < 1e-9 * np.linalg.norm(d) * np.linalg.norm(clean)
        assert rank_log10_p([rank_site(left, secret)]) < -12
        assert rank_log10_p([rank_site(left, pattern(rng))]) > -5
        assert share == 0 or rank_log10_p([rank_site(d, secret)]) > -8
    assert orthogonal_to(d, np.zeros(WIDTH)) is d
    with pytest.raises(ShapeError, match="must be the same"):
        orthogonal_to(d, clean[1:])


@pytest.mark.slow
def test_beyond_the_twin_is_uniform_under_the_null():
    """One suspect and one twin, many keys."""
    rng = np.random.default_rng(3)
    clean = rng.standard_cauchy(size=WIDTH)
    assert_uniform(orthogonal_to(0.7 * clean + 0.1 * rng.normal(size=WIDTH), clean), rng)
