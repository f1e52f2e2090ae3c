"""A fixed list of looks, each paid for: the rate of false verdicts under the null, and power."""

import math

import numpy as np
import pytest

from aiao_diffusers.errors import ConfigError, NotTestableError
from aiao_diffusers.stats.hits import hits, site_log10_p
from aiao_diffusers.stats.sequential import Look, SequentialTest


def shuffled_pattern(rng, channels):
    return rng.permutation(np.repeat([1, -1], [channels // 2, channels - channels // 2]))


class TestSequentialTest:
    def test_by_hand(self):
        test = SequentialTest(alpha=0.05).look("plain", trials=2, log10_p=math.log10(0.04))
        assert 10**test.log10_p == pytest.approx(0.08)
        assert test.verdict == "not_verified"
        test = test.look("amplitude x2", trials=4, log10_p=math.log10(0.01))
        assert 10**test.log10_p == pytest.approx(0.04)
        assert test.verdict == "verified"
        assert test.looks[1] == Look(2, "amplitude x2", 4, math.log10(0.01))

    @pytest.mark.parametrize("p, verdict", [(0.1249, "verified"), (0.1251, "not_verified")])
    def test_decision_about_alpha(self, p, verdict):
        assert SequentialTest(alpha=0.25).look("plain", trials=1, log10_p=math.log10(p)).verdict == verdict

    def test_a_later_bad_look_takes_nothing_back(self):
        test = SequentialTest().look("plain", trials=1, log10_p=-8.0)
        assert test.look("healed", trials=1, log10_p=0.0).verdict == "verified"

    def test_adjusted_p_stays_at_most_one(self):
        assert SequentialTest().look("plain", trials=1, log10_p=-0.1).log10_p == 0

    def test_a_look_leaves_the_test_it_came_from_unchanged(self):
        test = SequentialTest()
        test.look("plain", trials=1, log10_p=-8.0)
        assert test.looks == ()

    def test_no_look_is_not_testable(self):
        assert SequentialTest().verdict == "not_testable"
        with pytest.raises(NotTestableError):
            _ = SequentialTest().log10_p

    @pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, math.nan])
    def test_alpha_out_of_range_raises(self, alpha):
        with pytest.raises(ConfigError, match="alpha"):
            SequentialTest(alpha=alpha)

    @pytest.mark.parametrize("trials, log10_p", [(0, -1.0), (1, 0.1), (1, -math.inf), (1, math.nan)])
    def test_bad_look_raises(self, trials, log10_p):
        with pytest.raises(ConfigError):
            SequentialTest().look("plain", trials=trials, log10_p=log10_p)

    def test_left_out_look_raises(self):
        with pytest.raises(ConfigError, match="without a gap"):
            SequentialTest(looks=(Look(2, "amplitude x2", 4, -8.0),))

    def rates(self, mark, spend=True, looks=6, keys=1500):
        """Share of keys verified at alpha = .05 within some looks: response summed over looks, C = 64, noise 1 a look."""
        rng = np.random.default_rng(6)
        p_of = {value: site_log10_p(64, 32, value) for value in range(0, 65, 2)}
        crossed = 0
        for _ in range(keys):
            s, d, test = shuffled_pattern(rng, 64), np.zeros(64), SequentialTest(alpha=0.05)
            for k in range(1, looks + 1):
                d += mark * s + rng.standard_normal(64)
                test = test.look(f"look {k}", trials=k, log10_p=p_of[hits(d, s)])
            crossed += test.verdict == "verified" if spend else min(x.log10_p for x in test.looks) <= math.log10(0.05)
        return crossed / keys

    def test_crossing_rate_under_the_null_is_at_most_alpha(self):
        assert self.rates(mark=0.0) <= 0.05

    def test_unspent_looks_would_cross_too_often(self):
        assert self.rates(mark=0.0, spend=False) > 0.08  # planted fault: the same looks, none paid for

    def test_power_grows_with_looks(self):
        assert self.rates(mark=0.3, looks=1, keys=300) < 0.6
        assert self.rates(mark=0.3, looks=6, keys=300) > 0.9
