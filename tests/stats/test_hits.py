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
from aiao_diffusers.stats.hits import (
    SiteTest,
    combined_log10_p,
    floor_log10_p,
    hits,
    is_split,
    randomised_p,
    site_log10_p,
)


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


class TestSplit:
    """Which responses are evidence at all."""

    @pytest.mark.parametrize(
        "d", [[0, 0, 0, 0], [1, 1, 1, 0], [0, 5, 5, 5], [2, 2, 2, 2, 2], [1, 1, 1, 0, 2], [-1e30, 7, 7, 7, 7, 9]]
    )
    def test_of_ties_is_none(self, d):
        assert not is_split(d) and not is_split(np.float32(d) * 3)

    @pytest.mark.parametrize(
        "d", [[0, 1], [1, 0, 0, 1], [1, 1, 0, 2], [0, 0, 0, 1, 2, 3], [1, 1, 1, 1, 0, 0, 0, 0, 0], [5e-324, 0]]
    )
    def test_of_the_suspects_own_is_one(self, d):
        assert is_split(d) and is_split(d[::-1])

    def test_what_is_not_finite_is_left_to_hits(self):
        assert is_split([np.nan] * 4) and is_split([np.inf] * 4)


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

    @pytest.mark.slow
    def test_randomised_p_is_uniform(self):
        assert self.uniformity(seed=4, patterns=3000) > 0.01

    @pytest.mark.slow
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


class TestSiteTest:
    def test_p_follows_from_width_and_hits_alone(self):
        site = SiteTest("mid_block.attentions.0", channels=33, hits=25, log10_p=site_log10_p(33, 17, 25))
        assert site.log10_p == site_log10_p(site.channels, site.channels // 2, site.hits)

    def test_is_frozen(self):
        with pytest.raises(AttributeError):
            SiteTest("a", 8, 8, -1.8).hits = 4
