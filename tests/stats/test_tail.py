"""The law of hits of one site, by enumeration of all patterns."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from aiao_diffusers.stats.hits import combined_log10_p, hits, site_log10_p
from aiao_diffusers.stats.ranks import rank_log10_p
from aiao_diffusers.stats.tail import Window, log_upper_tail


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


def one_high(widths, value):
    """Sites `(C, C // 2, ...)`, the first of which reads `value` and the others 0: their sum alone counts."""
    return [(width, width // 2, 0 if i else value) for i, width in enumerate(widths)]


class TestOneTail:
    """Values recorded when hits and rank scores each had a tail of their own."""

    @pytest.mark.parametrize(
        "sites, expected",
        [
            ([(2, 1, 2)], -0.30102999566398114),
            ([(8, 4, 6)], -0.6146491186359833),
            ([(9, 4, 7)], -0.7781512503836436),
            ([(64, 32, 44)], -2.5579463104262503),
            ([(64, 32, 20)], -0.0002156010859271376),
            ([(320, 160, 190)] * 3, -8.363296006231993),
            ([(1280, 640, 1280)], -383.66664470342425),
            ([(64, 32, 64), (128, 64, 120), (320, 160, 250)], -59.800787214844995),
            ([(1280, 640, 660)] * 7, -2.7794612916867703),
        ],
    )
    def test_hits(self, sites, expected):
        assert combined_log10_p(sites) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize(
        "sites, expected",
        [
            (one_high([8], 5), -1.243038048686295),
            (one_high([64], 30), -3.9690275064059297),
            (one_high([64], -25), -0.00035117065729060745),
            (one_high([64, 128, 320], 180), -15.333377164532454),
            (one_high([64, 128, 320], 300), -46.357245330828846),
            (one_high([320] * 7, 900), -84.71391061157958),
            (one_high([33, 65], 40), -4.75391363919571),
            (one_high([1280], 900), -191.77899903868092),
        ],
    )
    def test_rank_scores(self, sites, expected):
        assert rank_log10_p(sites) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("clip", [False, True])
    @pytest.mark.parametrize("start", [-2, 0, 1, 5, 6])
    def test_any_law(self, start, clip):
        """Two coins of values -2, 1 and 3 at odds 1 to 2 to 1, in a window that begins below 0."""

        class Coin:
            values, masses = np.array([-2, 1, 3]), np.array([0.25, 0.5, 0.25])

            def tilted(self, theta):
                weights = self.masses * np.exp(theta * self.values)
                return weights / weights.sum(), math.log(weights.sum())

            def mean(self, theta):
                return float(self.tilted(theta)[0] @ self.values)

            def spectrum(self, theta, size):
                masses, norm = self.tilted(theta)
                law = np.zeros(size)
                law[self.values % size] = masses
                return np.fft.rfft(law), norm

        found = log_upper_tail([(Coin(), 2)], start, Window(-4, 11, 12), steepest=64, step=2**-10, clip=clip)
        sums = itertools.product(zip(Coin.values, Coin.masses, strict=True), repeat=2)
        assert math.exp(found) == pytest.approx(sum(p * q for (a, p), (b, q) in sums if a + b >= start), rel=1e-12)
