"""The folded law against a count of all patterns, and its signs."""

import itertools
import math

import numpy as np
import pytest

from aiao_diffusers.errors import ConfigError, NotTestableError
from aiao_diffusers.stats.folded import folded_log10_p
from aiao_diffusers.stats.hits import SiteHits, count_hits


def patterns(width: int) -> list[np.ndarray]:
    """Every balanced pattern with width // 2 entries of +1."""
    chosen = itertools.combinations(range(width), width // 2)
    return [np.where(np.isin(np.arange(width), plus), 1, -1) for plus in chosen]


def surplus(site: SiteHits) -> int:
    n = min(site.plus, site.channels - site.plus)
    return abs(site.hits - (site.channels - 2 * n) - n)


@pytest.mark.parametrize("widths", [(6,), (7,), (6, 4), (5, 6)])
def test_p_is_the_share_of_all_patterns_that_score_as_much(widths):
    drawn = np.random.default_rng(0)
    ds = [drawn.normal(size=width) for width in widths]
    every = [
        [count_hits(d, s) for d, s in zip(ds, pattern, strict=True)]
        for pattern in itertools.product(*map(patterns, widths))
    ]
    totals = np.array([sum(map(surplus, sites)) for sites in every])
    for sites, total in list(zip(every, totals, strict=True))[:: max(1, len(every) // 60)]:
        assert 10 ** folded_log10_p(sites) == pytest.approx((totals >= total).mean(), rel=1e-9)


def test_neither_sign_counts_more():
    d, s = np.arange(64.0), np.r_[-np.ones(32), np.ones(32)].astype(int)
    agreed, opposed = count_hits(d, s), count_hits(-d, s)
    assert (agreed.hits, opposed.hits) == (64, 0)
    assert folded_log10_p([agreed, opposed]) == pytest.approx(folded_log10_p([agreed, agreed]))
    assert folded_log10_p([agreed]) == pytest.approx(math.log10(2 / math.comb(64, 32)))


def test_nothing_compared_and_impossible_sites_are_refused():
    with pytest.raises(NotTestableError, match="nothing compared"):
        folded_log10_p([])
    with pytest.raises(ConfigError, match="channels=4"):
        folded_log10_p([(4, 2, 3)])
