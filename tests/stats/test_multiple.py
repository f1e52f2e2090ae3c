"""Many tests at once, and the interval of a share: by their definitions."""

import itertools
import math
import random

import pytest
from scipy import stats

from aiao_diffusers.errors import ConfigError
from aiao_diffusers.stats.multiple import clopper_pearson, holm


class TestClopperPearson:
    @pytest.mark.parametrize("n", [1, 8, 100, 5000])
    @pytest.mark.parametrize("confidence", [0.5, 0.95, 0.9999])
    def test_tails_at_the_ends(self, n, confidence):
        for successes in {0, 1, n // 3, n - 1, n}:
            low, high = clopper_pearson(successes, n, confidence)
            assert 0 <= low < high <= 1
            if successes > 0:
                assert stats.binom.sf(successes - 1, n, low) == pytest.approx((1 - confidence) / 2, rel=1e-11)
            if successes < n:
                assert stats.binom.cdf(successes, n, high) == pytest.approx((1 - confidence) / 2, rel=1e-11)

    def test_ends_at_no_success_and_no_failure(self):
        low, high = clopper_pearson(0, 10)
        assert low == 0 and high == pytest.approx(1 - 0.025**0.1, rel=1e-11)
        low, high = clopper_pearson(10, 10)
        assert low == pytest.approx(0.025**0.1, rel=1e-11) and high == 1

    def test_defining_property_notices_a_wald_interval(self):
        wald = 30 / 100 - 1.96 * math.sqrt(0.3 * 0.7 / 100)
        assert stats.binom.sf(29, 100, wald) != pytest.approx(0.025, rel=1e-2)

    @pytest.mark.parametrize("arguments", [(0, 0), (-1, 5), (6, 5), (1, 5, 0.0), (1, 5, 1.0), (1, 5, math.nan)])
    def test_out_of_range_raises(self, arguments):
        with pytest.raises(ConfigError):
            clopper_pearson(*arguments)


class TestHolm:
    def test_is_the_closure_of_bonferroni(self) -> None:
        """By definition: an adjusted p is the largest Bonferroni p of any set of hypotheses that holds it."""
        generator = random.Random(0)
        for size in range(1, 8):
            p = [10 ** generator.uniform(-4, 0) for _ in range(size)]
            p[-1] = p[0]  # a tie
            for i, found in enumerate(holm([math.log10(x) for x in p])):
                sets = (s for n in range(1, size + 1) for s in itertools.combinations(range(size), n) if i in s)
                assert math.isclose(10**found, max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets))

    def test_family_wise_error(self) -> None:
        """Uniform p of the null, fully dependent or not: one false acceptance in at most a share alpha of the scans."""
        generator = random.Random(1)
        scans, alpha = 4000, 0.05
        for dependent in (False, True):
            wrong = 0
            for _ in range(scans):
                shared = generator.random()
                p = [shared if dependent else generator.random() for _ in range(20)]
                wrong += min(holm([math.log10(max(x, 1e-300)) for x in p])) <= math.log10(alpha)
            assert wrong / scans < alpha + 3 * math.sqrt(alpha * (1 - alpha) / scans)

    def test_none_and_far_tail(self) -> None:
        assert holm([]) == []
        assert holm([-400.0, -500.0, 0.0]) == pytest.approx([-400 + math.log10(2), -500 + math.log10(3), 0.0])
