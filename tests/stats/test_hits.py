"""Exactness of the tails, three ways: full enumeration in Fractions, python integers deep in the tail, permutation."""

import itertools
import math
import time
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from aiao_diffusers.errors import ConfigError, NotTestableError, ShapeError
from aiao_diffusers.stats.hits import SiteTest, combined_log10_p, floor_log10_p, hits, randomised_p, site_log10_p
from aiao_diffusers.stats.multiple import clopper_pearson
from aiao_diffusers.stats.sequential import Look, SequentialTest


def balanced_patterns(channels, plus):
    """All patterns of `channels` entries with `plus` of them +1."""
    for chosen in itertools.combinations(range(channels), plus):
        s = np.full(channels, -1)
        s[list(chosen)] = 1
        yield s


def shuffled_pattern(rng, channels):
    return rng.permutation(np.repeat([1, -1], [channels // 2, channels - channels // 2]))


def exact_log10_p(sites):
    """log10 P(at least as many hits) and 1 - P, from integers alone: numerators multiply out as one packed product."""
    bits = sum(channels for channels, _, _ in sites) + 8
    packed, denominator, total = 1, 1, 0
    for channels, plus, agreeing in sites:
        first = max(0, 2 * plus - channels)
        counts = [math.comb(plus, x) * math.comb(channels - plus, plus - x) for x in range(first, plus + 1)]
        packed *= sum(count << (bits * i) for i, count in enumerate(counts))
        denominator *= math.comb(channels, plus)
        total += (agreeing - channels + 2 * plus) // 2 - first
    numerator, tail = 0, packed >> (bits * total)
    while tail:
        numerator += tail & ((1 << bits) - 1)
        tail >>= bits
    with localcontext() as context:
        context.prec = 50
        below = Decimal(denominator - numerator) / Decimal(denominator)
        if 0 < below < Decimal("1e-25"):  # log(1 - x) by its series, where 50 digits would cancel
            return -(below + below**2 / 2) / Decimal(10).ln()
        return (Decimal(numerator) / Decimal(denominator)).log10()


def relative_error(got, expected):
    return float(abs((Decimal(got) - expected) / expected))


class TestHits:
    def test_by_hand(self):
        d = [0.9, -0.1, 0.5, 0.2]  # read as + - + -
        assert hits(d, [1, -1, 1, -1]) == 4
        assert hits(d, [1, 1, -1, -1]) == 2
        assert hits(d, [-1, 1, -1, 1]) == 0

    @pytest.mark.parametrize("s, expected", [([1, -1, -1], 3), ([-1, 1, -1], 1), ([1, 1, -1], 3), ([-1, 1, 1], 1)])
    def test_odd_width_reads_as_many_plus_as_the_pattern_holds(self, s, expected):
        assert hits([3.0, 2.0, 1.0], s) == expected

    def test_offset_and_scale_do_not_matter(self):
        rng = np.random.default_rng(0)
        d, s = rng.standard_normal(64), shuffled_pattern(rng, 64)
        assert hits(d, s) == hits(1e3 * d - 7, s) == 64 - hits(-d, s)

    def test_ties_go_by_channel_index_whatever_the_pattern(self):
        # Were ties broken with a look at s, a constant response would hit everywhere.
        assert [hits(np.zeros(4), s) for s in balanced_patterns(4, 2)] == [4, 2, 2, 2, 2, 0]

    def test_differences_below_float32_are_not_ties(self):
        assert hits([1.0, 1.0 + 1e-9], [-1, 1]) == 2

    def test_arguments_are_not_modified(self):
        d, s = np.array([0.5, 0.1]), np.array([1, -1], dtype=np.int8)
        hits(d, s)
        assert d.tolist() == [0.5, 0.1] and s.tolist() == [1, -1]

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_not_finite_is_not_testable(self, bad):
        with pytest.raises(NotTestableError, match="1 of 4 channels"):
            hits([0.1, bad, 0.3, 0.4], [1, -1, 1, -1])

    @pytest.mark.parametrize("s", [[1, 1, 1, -1], [1, 0, -1, 1], [2, -1, 1, -1], [1.0, -1.0, math.nan, 1.0]])
    def test_pattern_that_is_not_balanced_raises(self, s):
        with pytest.raises(ConfigError):
            hits([0.1, 0.2, 0.3, 0.4], s)

    def test_widths_below_two_raise(self):
        for d, s in [([], []), ([0.1], [1])]:
            with pytest.raises(ConfigError):
                hits(d, s)

    def test_shapes_that_differ_raise(self):
        with pytest.raises(ShapeError):
            hits([0.1, 0.2], [1, -1, 1, -1])
        with pytest.raises(ShapeError):
            hits([[0.1, 0.2]], [[1, -1]])


class TestTail:
    @pytest.mark.parametrize("channels, plus", [(8, 4), (7, 3), (7, 4), (2, 1), (3, 1), (3, 2)])
    def test_equals_enumeration_of_all_patterns(self, channels, plus):
        d = np.random.default_rng(1).standard_normal(channels)
        seen = [hits(d, s) for s in balanced_patterns(channels, plus)]
        assert len(seen) == math.comb(channels, plus)
        for value in set(seen):
            p = Fraction(sum(other >= value for other in seen), len(seen))
            assert 10 ** site_log10_p(channels, plus, value) == pytest.approx(float(p), rel=1e-13)

    @pytest.mark.parametrize("first, second", [((8, 4), (8, 4)), ((8, 4), (6, 3)), ((7, 3), (5, 3))])
    def test_two_sites_equal_enumeration_of_all_pairs(self, first, second):
        rng = np.random.default_rng(2)
        seen = [
            [hits(d, s) for s in balanced_patterns(*site)]
            for site, d in [(first, rng.standard_normal(first[0])), (second, rng.standard_normal(second[0]))]
        ]
        totals = [a + b for a, b in itertools.product(*seen)]
        for a, b in itertools.product(*map(set, seen)):
            p = Fraction(sum(total >= a + b for total in totals), len(totals))
            assert 10 ** combined_log10_p([(*first, a), (*second, b)]) == pytest.approx(float(p), rel=1e-13)

    def test_enumeration_notices_independent_bits(self):
        # Planted fault: a binomial null, as if the pattern were not balanced, differs at every hit count above zero.
        for value in range(2, 9, 2):
            binomial = stats.binom.sf(value - 1, 8, 0.5)
            assert abs(10 ** site_log10_p(8, 4, value) - binomial) > 1e-3

    @pytest.mark.parametrize("channels, plus", [(8, 4), (352, 176), (1280, 640), (321, 160), (321, 161)])
    def test_against_scipy(self, channels, plus):
        least = abs(channels - 2 * plus)
        for value in range(least, channels + 1, max(2, channels // 40 * 2)):
            x = (value - channels + 2 * plus) // 2
            expected = stats.hypergeom.sf(x - 1, channels, plus, plus)
            if expected > 1e-280:
                assert 10 ** site_log10_p(channels, plus, value) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize(
        "sites",
        [
            *([(128, 64, value)] * 7 for value in (2, 20, 50, 64, 66, 80, 104, 126, 128)),
            [(320, 160, 2)],
            [(352, 176, 352)],
            [(1280, 640, 1278)],
            [(1280, 640, 1000), (640, 320, 500)],
            [(320, 160, 320), (1280, 640, 600)],
            [(65, 32, 63), (33, 17, 1), (64, 32, 40)],
        ],
    )
    def test_relative_error_against_integers(self, sites):
        assert relative_error(combined_log10_p(sites), exact_log10_p(sites)) < 1e-11

    def test_reference_notices_one_hit_pair(self):
        sites = [(1280, 640, 1000), (640, 320, 500)]
        assert relative_error(combined_log10_p([(1280, 640, 1002), sites[1]]), exact_log10_p(sites)) > 1e-3

    def test_plus_and_minus_swapped_is_the_same_law(self):
        assert site_log10_p(33, 16, 25) == site_log10_p(33, 17, 25)

    def test_order_and_grouping_of_sites_do_not_matter(self):
        sites = [(128, 64, 90), (64, 32, 20), (128, 64, 70)]
        assert combined_log10_p(sites) == pytest.approx(combined_log10_p(sites[::-1]), rel=1e-13)
        assert combined_log10_p(sites) == combined_log10_p([(128, 64, 80), (64, 32, 20), (128, 64, 80)])

    def test_no_hit_is_certain_and_all_hits_are_the_floor(self):
        for sites in [[(8, 4)], [(1280, 640)] * 16, [(4096, 2048)] * 57, [(320 + i, 160) for i in (0, 1)]]:
            nothing = [(c, plus, abs(c - 2 * plus)) for c, plus in sites]
            everything = [(c, plus, c) for c, plus in sites]
            assert combined_log10_p(nothing) == 0
            assert combined_log10_p(everything) == pytest.approx(floor_log10_p(nothing), rel=1e-12)
            assert math.isfinite(floor_log10_p(everything))
        assert floor_log10_p([(8, 4, 0)]) == pytest.approx(-math.log10(70), rel=1e-14)

    def test_decreases_at_every_step(self):
        values = [combined_log10_p([(320, 160, value), (640, 320, 320)]) for value in range(0, 321, 2)]
        assert all(b < a for a, b in itertools.pairwise(values))

    def test_fast_enough_for_every_look(self):
        sites = [(1280 + 2 * i, 640 + i, 800) for i in range(16)]  # all widths differ: nothing is shared
        start = time.perf_counter()
        combined_log10_p(sites)
        assert time.perf_counter() - start < 0.2

    @pytest.mark.parametrize("function", [combined_log10_p, floor_log10_p, lambda sites: randomised_p(sites, 0.5)])
    def test_no_site_is_not_testable(self, function):
        with pytest.raises(NotTestableError, match="no site"):
            function([])

    @pytest.mark.parametrize("site", [(8, 4, 9), (8, 4, 10), (8, 4, 3), (8, 4, -2), (8, 0, 8), (8, 8, 8), (7, 3, 0)])
    def test_impossible_site_raises(self, site):
        with pytest.raises(ConfigError, match=r"channels=\d, plus=\d, hits=-?\d"):
            combined_log10_p([(8, 4, 4), site])


class TestNull:
    """Random keys against fixed responses, the very situation of a wrong key."""

    WIDTHS = (64, 129, 320)

    def draw(self, seed, patterns, mark=0.0):
        """Triples of `patterns` keys, the response fixed (heavy tails, ties, an offset), `mark` added along the key."""
        rng = np.random.default_rng(seed)
        responses = [np.round(rng.standard_cauchy(c), 1) + 5 for c in self.WIDTHS]
        for _ in range(patterns):
            keys = [shuffled_pattern(rng, c) for c in self.WIDTHS]
            yield [(s.size, int((s == 1).sum()), hits(d + mark * s, s)) for d, s in zip(responses, keys, strict=True)]

    def uniformity(self, seed, patterns, mark=0.0):
        u = np.random.default_rng(seed + 1).random(patterns)
        triples = self.draw(seed, u.size, mark)
        return stats.kstest([randomised_p(s, x) for s, x in zip(triples, u, strict=True)], "uniform").pvalue

    def test_permutation_agrees_with_the_exact_tail(self):
        totals = np.array([sum(value for _, _, value in sites) for sites in self.draw(3, 4000)])
        for threshold in np.quantile(totals, [0.1, 0.5, 0.9, 0.99]).astype(int):
            threshold += (threshold - totals[0]) % 2
            p = 10 ** combined_log10_p([(64, 32, 64), (129, 64, 129), (320, 160, threshold - 193)])
            assert stats.binomtest(int((totals >= threshold).sum()), totals.size, p).pvalue > 0.01

    def test_randomised_p_is_uniform(self):
        assert self.uniformity(seed=4, patterns=3000) > 0.01

    def test_uniformity_notices_a_weak_mark(self):
        assert self.uniformity(seed=4, patterns=1000, mark=0.1) < 1e-6  # planted fault: one rounding step of d

    def test_uniformity_needs_the_randomisation(self):
        raw = [10 ** combined_log10_p(sites) for sites in self.draw(4, 1000)]
        assert stats.kstest(raw, "uniform").pvalue < 1e-6

    def test_randomised_p_by_hand(self):
        assert randomised_p([(8, 4, 8)], 0.0) == 0
        assert randomised_p([(8, 4, 8)], 0.5) == pytest.approx(1 / 140, rel=1e-13)
        assert randomised_p([(8, 4, 6)], 0.25) == pytest.approx((1 + 16 / 4) / 70, rel=1e-13)

    @pytest.mark.parametrize("u", [-0.1, 1.0, math.nan])
    def test_u_out_of_range_raises(self, u):
        with pytest.raises(ConfigError):
            randomised_p([(8, 4, 8)], u)


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


class TestSiteTest:
    def test_p_follows_from_width_and_hits_alone(self):
        site = SiteTest("mid_block.attentions.0", channels=33, hits=25, log10_p=site_log10_p(33, 17, 25))
        assert site.log10_p == site_log10_p(site.channels, site.channels // 2, site.hits)

    def test_is_frozen(self):
        with pytest.raises(AttributeError):
            SiteTest("a", 8, 8, -1.8).hits = 4
