"""Folded hits: the exact p-value of a reading whose sign no party chose.

A direction that is known up to its sign agrees with the pattern or opposes it. With n = min(plus, C - plus) and j as in `hits`, a
site scores u = |2j - n|, the surplus of agreements over disagreements either way; the law of u is that of j, folded. Null
hypothesis and assumptions are those of `hits`. Each site may have a sign of its own, which is what the fold costs: a weak
agreement that all sites share is seen better by `hits`.

Source: our choice.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import fft

from .hits import HitLaw, count_sites, log_pmf
from .tail import Window, log_upper_tail


class _FoldedLaw(HitLaw):
    """The law of u at one site, on 0 .. n."""

    def __init__(self, channels: int, n: int) -> None:
        folded = np.full(n + 1, -math.inf)
        for j, log_p in enumerate(log_pmf(channels, n)):
            folded[abs(2 * j - n)] = np.logaddexp(folded[abs(2 * j - n)], log_p)
        self.log_pmf = folded


@lru_cache(maxsize=64)
def _folded_law(channels: int, n: int) -> _FoldedLaw:
    return _FoldedLaw(channels, n)


def folded_log10_p(sites: Sequence[tuple[int, int, int]]) -> float:
    """Exact probability, under the null, of surpluses that add up to at least as much as was seen.

    Args:
        sites: `SiteHits` (or plain triples), at least one; each site once.
    Returns:
        `float`: log10 p, at most 0.
    Raises:
        NotTestableError: no site. ConfigError: a site that `hits` cannot have produced.
    """
    kinds: Counter[tuple[int, int]] = count_sites(sites)[0]
    total = 0
    for channels, plus, agreeing in sites:
        n = min(plus, channels - plus)
        total += abs(agreeing - (channels - 2 * n) - n)
    top = sum(n * count for (_, n), count in kinds.items())
    if total <= sum((n % 2) * count for (_, n), count in kinds.items()):
        return 0.0
    laws = [(_folded_law(channels, n), count) for (channels, n), count in kinds.items()]
    window = Window(0, top + 1, fft.next_fast_len(top + 1, real=True))
    log_tail = log_upper_tail(laws, total, window, steepest=128, step=2**-10)
    return min(0.0, log_tail) / math.log(10)
