"""The law of hits of one site, by enumeration of all patterns."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from aiao_diffusers.stats.hits import hits, site_log10_p


def balanced_patterns(channels, plus):
    """All patterns of `channels` entries with `plus` of them +1."""
    for chosen in itertools.combinations(range(channels), plus):
        s = np.full(channels, -1)
        s[list(chosen)] = 1
        yield s


class TestTail:
    @pytest.mark.parametrize("channels, plus", [(8, 4), (352, 176), (1280, 640), (321, 160), (321, 161)])
    def test_against_scipy(self, channels, plus):
        least = abs(channels - 2 * plus)
        for value in range(least, channels + 1, max(2, channels // 40 * 2)):
            x = (value - channels + 2 * plus) // 2
            expected = stats.hypergeom.sf(x - 1, channels, plus, plus)
            if expected > 1e-280:
                assert 10 ** site_log10_p(channels, plus, value) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("channels, plus", [(8, 4), (7, 3), (7, 4), (2, 1), (3, 1), (3, 2)])
    def test_equals_enumeration_of_all_patterns(self, channels, plus):
        d = np.random.default_rng(1).standard_normal(channels)
        seen = [hits(d, s) for s in balanced_patterns(channels, plus)]
        assert len(seen) == math.comb(channels, plus)
        for value in set(seen):
            p = Fraction(sum(other >= value for other in seen), len(seen))
            assert 10 ** site_log10_p(channels, plus, value) == pytest.approx(float(p), rel=1e-13)

    def test_enumeration_notices_independent_bits(self):
        # Planted fault: a binomial null, as if the pattern were not balanced, differs at every hit count above zero.
        for value in range(2, 9, 2):
            binomial = stats.binom.sf(value - 1, 8, 0.5)
            assert abs(10 ** site_log10_p(8, 4, value) - binomial) > 1e-3

    def test_plus_and_minus_swapped_is_the_same_law(self):
        assert site_log10_p(33, 16, 25) == site_log10_p(33, 17, 25)
