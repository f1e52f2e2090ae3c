"""Rank scores: a second exact statistic, which weighs a channel by how far out its response lies.

A median split counts a channel whose response stands out as much as one that tips the scale by chance. Where an attack has
buried most of a mark, the channels that still stand out carry it: on the shipped model normal scores read 1.2 to 1.5 times as
many decades as hits after heavy pruning, noise, truncation and merging (`aiao bench ranks`). Null hypothesis and assumptions
are those of `statistics`, and so is the exactness: given the ranks of d, the channels that a balanced secret pattern marks +1
are a uniformly random half, whatever the suspect.

T = sum over sites and channels with s_i = +1 of a_i, a_i = round(2 z_i), z_i the normal quantile of (rank of d_i - 1/2) / C.
Whole numbers, so that the law of T is computed and not approximated.

Source: van der Waerden's scores; rounding and computation are our choice.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, optimize, special, stats

from ..errors import NotTestableError
from .hits import hits


RankSite = tuple[int, int, int]
# Of the FFT's window, in units of sqrt(sum of squared ranges): Hoeffding puts less than 1e-30 outside it.
_WIDTH = 12.0


@lru_cache(maxsize=64)
def scores(channels: int) -> NDArray[np.int64]:
    """a_i by rank, ascending, shape `(channels,)`, read-only; they add up to 0."""
    made = np.rint(2 * stats.norm.ppf((np.arange(channels) + 0.5) / channels)).astype(np.int64)
    made.setflags(write=False)
    return made


def rank_site(d: NDArray[Any], s: NDArray[Any]) -> RankSite:
    """`(channels, plus, T)` of a response d against a response pattern s, both `(C,)`.

    Raises:
        ShapeError, ConfigError, NotTestableError: as `statistics.hits`.
    """
    hits(d, s)  # the same demands on d and s
    own = np.empty(len(s), dtype=np.int64)
    # Ties as in a median split: the lower channel index counts as larger.
    own[np.argsort(-np.asarray(d, dtype=np.float64), kind="stable")] = scores(len(s))[::-1]
    return len(s), int((s > 0).sum()), int(own[np.asarray(s) > 0].sum())


def rank_log10_p(sites: Sequence[RankSite]) -> float:
    """Exact probability, under the null, of rank scores that add up to at least as much as was seen.

    Args:
        sites: triples `(channels, plus, T)`, one an out-site, at least one; each site once.
    Returns:
        `float`: log10 p, at most 0; relative error of p below 1e-6 down to p = 1e-300.
    Raises:
        NotTestableError: no site.
    Each law is that of independent channels, tilted by exp(theta a_i) so that the sum has its mean at T, given that `plus` of
    them are +1. The condition and the sum over sites are both taken by FFT, and the tilt is taken out of the tail afterwards.
    """
    if not len(sites):
        raise NotTestableError("no site was compared: nothing compared is never a verdict")
    kinds = Counter((channels, plus) for channels, plus, _ in sites)
    total = sum(t for _, _, t in sites)
    least, most = (
        sum(count * int(part.sum()) for part, count in ends)
        for ends in (
            [(scores(c)[:n], count) for (c, n), count in kinds.items()],
            [(scores(c)[c - n :], count) for (c, n), count in kinds.items()],
        )
    )
    if total <= least:
        return 0.0

    def mean(theta: float) -> float:
        return sum(count * _mean(c, n, theta) for (c, n), count in kinds.items())

    # The identity holds at any theta; it only has to bring the mass near the tail's edge.
    theta = float(optimize.brentq(lambda x: mean(x) - (total - 0.5), -60, 60, xtol=1e-4))
    spread = math.sqrt(sum(count * float((scores(c) ** 2).sum()) for (c, _), count in kinds.items()))
    size = fft.next_fast_len(min(2 * (most - least) + 1, math.ceil(_WIDTH * spread)), real=True)
    spectrum, log_norm = np.ones(size // 2 + 1, dtype=np.complex128), 0.0
    for (channels, plus), count in kinds.items():
        law, norm = _spectrum(channels, plus, theta, size)
        spectrum *= law**count
        log_norm += count * norm
    # The window is cyclic; its middle is put on T.
    law = np.roll(fft.irfft(spectrum, size), size // 2 - total % size)
    offset = np.arange(size) - size // 2
    side = offset >= 0 if theta > 0 else offset < 0
    mass = float(law[side].clip(min=0) @ np.exp(-theta * offset[side]))
    log_tail = log_norm - theta * total + math.log(max(mass, 1e-300))
    return min(0.0, log_tail if theta > 0 else math.log1p(-min(math.exp(log_tail), 1 - 1e-16))) / math.log(10)


def _levels(channels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different scores, and how many channels have each."""
    values, counts = np.unique(scores(channels), return_counts=True)
    return values, counts


def _tilt(channels: int, plus: int, theta: float) -> tuple[float, NDArray[np.float64]]:
    """mu, and each level's probability expit(mu + theta a) of +1, with `plus` channels +1 in the mean."""
    values, counts = _levels(channels)
    reach = 40 + abs(theta) * float(np.abs(values).max())
    mu = float(
        optimize.brentq(lambda m: float(counts @ special.expit(m + theta * values)) - plus, -reach, reach, xtol=1e-9)
    )
    return mu, special.expit(mu + theta * values)


def _mean(channels: int, plus: int, theta: float) -> float:
    values, counts = _levels(channels)
    return float((counts * values) @ _tilt(channels, plus, theta)[1])


def _spectrum(channels: int, plus: int, theta: float, size: int) -> tuple[NDArray[np.complex128], float]:
    """Of one site: the transform of P(count = plus, sum = t) under the tilt, and log of what undoes it, less -theta t.

    P_null(t) = P_tilted(plus, t) exp(norm - theta t).
    """
    values, counts = _levels(channels)
    mu, p = _tilt(channels, plus, theta)
    roots = min(channels + 1, math.ceil(_WIDTH * math.sqrt(channels)))
    z = np.exp(-2j * np.pi * np.arange(roots) / roots)[:, None]
    frequency = -2j * np.pi * np.arange(size // 2 + 1)[None, :] / size
    product = np.ones((roots, size // 2 + 1), dtype=np.complex128)
    for value, count, chance in zip(values.tolist(), counts.tolist(), p.tolist(), strict=True):
        product *= (1 - chance + chance * z * np.exp(frequency * value)) ** count
    given = (product * z ** (-plus)).mean(0)
    log_binom = special.gammaln(channels + 1) - special.gammaln(plus + 1) - special.gammaln(channels - plus + 1)
    # log(1 + e^x) of every channel, stable for large x.
    norm = float(counts @ np.logaddexp(0.0, mu + theta * values)) - mu * plus - float(log_binom)
    return given, norm
