"""Rank scores: against every arrangement, against a direct count at real widths, and for what they are kept."""

import itertools

import numpy as np
import pytest
from scipy import stats

from aiao_diffusers.errors import ConfigError, NotTestableError, ShapeError
from aiao_diffusers.stats.hits import combined_log10_p, count_hits
from aiao_diffusers.stats.ranks import rank_log10_p, rank_site, score_law, scores


def arrangements(channels, plus):
    """T of every balanced pattern."""
    return [int(scores(channels)[list(chosen)].sum()) for chosen in itertools.combinations(range(channels), plus)]


def counted(channels, plus):
    """The law of T by counting subsets channel by channel, and the T of its first entry."""
    own = scores(channels) - scores(channels).min()
    table = np.zeros((plus + 1, int(np.sort(own)[-plus:].sum()) + 1))
    table[0, 0] = 1
    for number, score in enumerate(own.tolist()):
        for k in range(min(number, plus - 1), -1, -1):
            table[k + 1, score:] += table[k, : table.shape[1] - score]
    return table[plus] / table[plus].sum(), plus * int(scores(channels).min())


def patterns(rng, widths):
    return [rng.permutation(np.repeat([1, -1], [w // 2, w - w // 2])) for w in widths]


@pytest.mark.parametrize("widths", [[2], [7], [10], [4, 6], [3, 5, 6]])
def test_equals_the_share_of_all_arrangements(widths):
    every = [sum(parts) for parts in itertools.product(*(arrangements(w, w // 2) for w in widths))]
    for seen in sorted(set(every)):
        p = rank_log10_p([(w, w // 2, seen if not i else 0) for i, w in enumerate(widths)])
        assert 10**p == pytest.approx(sum(t >= seen for t in every) / len(every), rel=1e-9)


@pytest.mark.parametrize("widths", [[96], [64, 96, 160], [320, 320]])
def test_equals_a_direct_count_down_to_the_last_arrangement(widths):
    law, first = np.ones(1), 0
    for width in widths:
        part, start = counted(width, width // 2)
        law, first = np.convolve(law, part), first + start
    tails = law[::-1].cumsum()[::-1]
    for place in np.linspace(0, len(law) - 1, 25).astype(int):
        p = rank_log10_p([(w, w // 2, first + int(place) if not i else 0) for i, w in enumerate(widths)])
        assert p == pytest.approx(np.log10(tails[place]), rel=1e-9, abs=1e-9)


@pytest.mark.slow
def test_is_uniform_under_the_null_whatever_the_response():
    """Steps of the discrete law apart, p is never too small; a heavy-tailed and a tied response are no exception."""
    rng = np.random.default_rng(0)
    widths = [64, 96]
    for d in ([rng.standard_cauchy(w) for w in widths], [np.round(rng.normal(size=w)) for w in widths]):
        ps = [
            rank_log10_p([rank_site(x, s) for x, s in zip(d, patterns(rng, widths), strict=True)]) for _ in range(600)
        ]
        for level in (0.5, 0.1, 0.02):
            share, error = np.mean(np.array(ps) <= np.log10(level)), (level * (1 - level) / 600) ** 0.5
            assert abs(share - level) < 4 * error


def test_reads_deeper_than_hits_where_a_mark_is_nearly_gone():
    rng = np.random.default_rng(1)
    widths, gain = [64, 64, 96, 160], []
    for _ in range(40):
        secret = patterns(rng, widths)
        d = [rng.normal(size=w) + 0.5 * s for w, s in zip(widths, secret, strict=True)]
        by_rank = rank_log10_p([rank_site(x, s) for x, s in zip(d, secret, strict=True)])
        gain.append(by_rank / combined_log10_p([count_hits(x, s) for x, s in zip(d, secret, strict=True)]))
    assert np.median(gain) > 1.2


def test_a_strange_response_scores_as_in_a_median_split():
    s = np.array([1, -1, 1, -1])
    assert rank_site(np.zeros(4), s) == rank_site(np.array([4.0, 3.0, 2.0, 1.0]), s)
    assert rank_site(np.array([9.0, -9.0, 8.0, -8.0]), s)[2] == int(scores(4)[2:].sum())


def test_misuse_is_refused():
    with pytest.raises(NotTestableError, match="nothing compared"):
        rank_log10_p([])
    with pytest.raises(ShapeError):
        rank_site(np.zeros(3), np.array([1, -1]))
    with pytest.raises(ConfigError):
        rank_site(np.zeros(2), np.array([1, 1]))
    with pytest.raises(NotTestableError, match="not finite"):
        rank_site(np.array([np.nan, 0.0]), np.array([1, -1]))


def test_a_second_reading_of_as_many_sites_computes_no_law_anew():
    widths = [320] * 40 + [640] * 30
    score_law.cache_clear()
    kinds = [score_law(320, 160), score_law(640, 320)]
    for shift in range(-300, 301, 60):
        rank_log10_p([(width, width // 2, shift if not i else 0) for i, width in enumerate(widths)])
    before = [law._masses.cache_info().misses for law in kinds]
    for shift in range(-290, 291, 60):
        rank_log10_p([(width, width // 2, shift if not i else 0) for i, width in enumerate(widths)])
    assert [law._masses.cache_info().misses for law in kinds] == before
    assert max(before) <= 12


@pytest.mark.slow
def test_hundreds_of_wide_sites_keep_their_mass():
    # One site's law has 0.02 of its mass at the right count: to the power of 210 that is below any float.
    width, sites = 1280, 210
    spread = np.sqrt(sites * width / (width - 1) * (scores(width) ** 2).sum() / 4)
    for shift in (-1.5, 0.0, 1.5, 6.0):
        rows = [(width, width // 2, 0)] * (sites - 1) + [(width, width // 2, round(shift * spread))]
        assert rank_log10_p(rows) == pytest.approx(stats.norm.logsf(shift) / np.log(10), rel=0.03)
