"""Rank scores: a second exact statistic, which weighs a channel by how far out its response lies.

A median split counts a channel whose response stands out as much as one that tips the scale by chance. Where an attack has
buried most of a mark, the channels that still stand out carry it: on the shipped model normal scores read 1.2 to 1.5 times as
many decades as hits after heavy pruning, noise, truncation and merging (`aiao bench ranks`). Null hypothesis and assumptions
are those of `hits`, and so is the exactness: given the ranks of d, the channels that a balanced secret pattern marks +1
are a uniformly random half, whatever the suspect.

T = sum over sites and channels with s_i = +1 of a_i, a_i = round(2 z_i), z_i the normal quantile of (rank of d_i - 1/2) / C.
Whole numbers, so that the law of T is computed and not approximated.

Source: van der Waerden's scores; rounding and computation are our choice.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, optimize, special, stats

from ..errors import NotTestableError
from .hits import hits
from .tail import Window, log_binom, log_upper_tail


# Of the FFT's window, in units of sqrt(sum of squared ranges): Hoeffding puts less than 1e-30 outside it.
_WIDTH = 12.0


class SiteScore(NamedTuple):
    """What was read at one out-site.

    Attributes:
        channels (`int`): width C.
        plus (`int`): how many of the response pattern's C values are +1.
        score (`int`): T, the sum of a_i over the channels whose pattern is +1; 0 is what chance gives.
    """

    channels: int
    plus: int
    score: int


@lru_cache(maxsize=64)
def scores(channels: int) -> NDArray[np.int64]:
    """a_i by rank, ascending, shape `(channels,)`, read-only; they add up to 0."""
    made = np.rint(2 * stats.norm.ppf((np.arange(channels) + 0.5) / channels)).astype(np.int64)
    made.setflags(write=False)
    return made


def rank_site(d: NDArray[Any], s: NDArray[Any]) -> SiteScore:
    """`SiteScore` of a response d against a response pattern s, both `(C,)`.

    Raises:
        ShapeError, ConfigError, NotTestableError: as `hits.hits`.
    """
    hits(d, s)  # the same demands on d and s
    own = np.empty(len(s), dtype=np.int64)
    # Ties as in a median split: the lower channel index counts as larger.
    own[np.argsort(-np.asarray(d, dtype=np.float64), kind="stable")] = scores(len(s))[::-1]
    return SiteScore(len(s), int((s > 0).sum()), int(own[np.asarray(s) > 0].sum()))


def rank_log10_p(sites: Sequence[tuple[int, int, int]]) -> float:
    """Exact probability, under the null, of rank scores that add up to at least as much as was seen.

    Args:
        sites: `SiteScore` (or plain triples), one an out-site, at least one; each site once.
    Returns:
        `float`: log10 p, at most 0; relative error of p below 1e-6 down to p = 1e-300.
    Raises:
        NotTestableError: no site.
    """
    if not len(sites):
        raise NotTestableError("no site was compared: nothing compared is never a verdict")
    kinds = Counter((channels, plus) for channels, plus, _ in sites)
    total = sum(t for _, _, t in sites)
    least = sum(count * int(scores(c)[:n].sum()) for (c, n), count in kinds.items())
    most = sum(count * int(scores(c)[c - n :].sum()) for (c, n), count in kinds.items())
    if total <= least:
        return 0.0
    spread = math.sqrt(sum(count * float((scores(c) ** 2).sum()) for (c, _), count in kinds.items()))
    size = fft.next_fast_len(min(2 * (most - least) + 1, math.ceil(_WIDTH * spread)), real=True)
    laws = [(score_law(channels, plus), count) for (channels, plus), count in kinds.items()]
    window = Window(total - size // 2, size, size)
    # Fine enough that the mass lies within half a standard deviation of the edge, and a power of two: readings of as many sites
    # meet the same few tilts, whose laws are kept.
    step = 2.0 ** math.floor(math.log2(2 / spread))
    log_tail = log_upper_tail(laws, total, window, steepest=64, step=step, clip=True)
    return min(0.0, log_tail) / math.log(10)


@lru_cache(maxsize=64)
def score_law(channels: int, plus: int) -> "ScoreLaw":
    """The law of T at one site, with what was computed of it before."""
    return ScoreLaw(channels, plus)


class ScoreLaw:
    """The law of T at one site; a `tail.Law`.

    It is that of independent channels, tilted by exp(theta a_i), given that `plus` of them are +1; the condition is taken by FFT.
    """

    def __init__(self, channels: int, plus: int) -> None:
        self.channels, self.plus = channels, plus
        # The different scores, and how many channels have each.
        self.values, self.counts = np.unique(scores(channels), return_counts=True)
        self._tilt = lru_cache(maxsize=256)(self._find_tilt)
        self._masses = lru_cache(maxsize=32)(self._count_masses)

    def _find_tilt(self, theta: float) -> tuple[float, NDArray[np.float64]]:
        """mu, and each level's probability expit(mu + theta a) of +1, with `plus` channels +1 in the mean."""
        reach = 40 + abs(theta) * float(np.abs(self.values).max())

        def excess(mu: float) -> float:
            return float(self.counts @ special.expit(mu + theta * self.values)) - self.plus

        mu = float(optimize.brentq(excess, -reach, reach, xtol=1e-9))
        return mu, special.expit(mu + theta * self.values)

    def mean(self, theta: float) -> float:
        return float((self.counts * self.values) @ self._tilt(theta)[1])

    def _count_masses(self, theta: float) -> tuple[int, NDArray[np.float64], float]:
        """The tilted law times the chance that `plus` channels are +1: its first value, its masses from there, and the norm."""
        mu, p = self._tilt(theta)
        # Hoeffding: what lies a whole period of `roots` or half a period of `size` from the mean is below 1e-21.
        roots = min(self.channels + 1, math.ceil(5 * math.sqrt(self.channels)))
        spread = math.sqrt(float(self.counts @ self.values**2))
        size = fft.next_fast_len(
            min(2 * int(self.counts @ np.abs(self.values)) + 1, math.ceil(10 * spread)), real=True
        )
        z = np.exp(-2j * np.pi * np.arange(roots) / roots)[:, None]
        frequency = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)[None, :]
        product = np.ones((roots, size // 2 + 1), dtype=np.complex128)
        for value, count, chance in zip(self.values.tolist(), self.counts.tolist(), p.tolist(), strict=True):
            product *= (1 - chance + chance * z * frequency**value) ** count
        given = (product * z ** (-self.plus)).mean(0)
        first = round(self.mean(theta)) - size // 2
        # log(1 + e^x) of every channel, stable for large x.
        free = float(self.counts @ np.logaddexp(0.0, mu + theta * self.values))
        norm = free - mu * self.plus - float(log_binom(self.channels, self.plus))
        return first, np.roll(fft.irfft(given, size), -(first % size)), norm

    def spectrum(self, theta: float, size: int) -> tuple[NDArray[np.complex128], float]:
        first, masses, norm = self._masses(theta)
        folded = np.zeros(size)
        np.add.at(folded, (first + np.arange(len(masses))) % size, masses)
        return fft.rfft(folded), norm
