"""Exact p-values of a watermark reading: hits of a median split, and their sum over sites.

Null hypothesis: "the suspect was made without knowledge of the key's secret". Every p-value here is exact under it, for
*any* suspect, trained or random, with no calibration set. That rests on three assumptions:

1. Response patterns are balanced and uniform among the balanced ones, independent from site to site. If not (a biased
   shuffle, one pattern reused at two sites), the hypergeometric law is wrong and sites must not be convolved.
2. Response patterns are independent of whatever d was read with: the trigger masks, the probe bank, an alignment. If not
   (a response pattern derived from a trigger mask, an alignment fitted to the marked model), a suspect that merely
   passes its input through can agree with the key.
3. The key was fixed before the suspect was seen. If not, a claimant draws keys until one fits: the best of n keys has
   p near 1/n, and nothing computed here can tell. A dated commitment answers it, statistics do not.

All p-values are log10, so that they stay finite. A site is a `SiteHits`: width C, number of +1 in its response pattern,
hits. With n = min(plus, C - plus), hits = C - 2n + 2j, where j is hypergeometric:

    P(j) = binom(n, j) binom(C - n, n - j) / binom(C, n),    j = 0 .. n

so `plus` and `C - plus` give the same law, and a balanced site's p-value follows from its width and hits alone.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from ..errors import ConfigError, NotTestableError, ShapeError
from .tail import Window, log_binom, log_upper_tail


_LN10 = math.log(10)


class SiteHits(NamedTuple):
    """What was read at one out-site.

    Attributes:
        channels (`int`): width C, which is also the number of bits read.
        plus (`int`): how many of the response pattern's C values are +1.
        hits (`int`): channels that agree with the response pattern, 0 to C; C/2 is what chance gives.
    """

    channels: int
    plus: int
    hits: int


@dataclass(frozen=True)
class SiteTest:
    """One out-site's test.

    Attributes:
        name (`str`): the site's diffusers name.
        channels (`int`): width C, which is also the number of bits read.
        hits (`int`): channels that agree with the response pattern, 0 to C; C/2 is what chance gives.
        log10_p (`float`): the site's own p-value, from `site_log10_p`.
    """

    name: str
    channels: int
    hits: int
    log10_p: float


def count_hits(d: NDArray[Any], s: NDArray[Any]) -> SiteHits:
    """`SiteHits` of a response d against a response pattern s, both `(C,)`; raises as `hits`."""
    return SiteHits(len(s), int((s > 0).sum()), hits(d, s))


def hits(d: ArrayLike, s: ArrayLike) -> int:
    """Channels in which the median split of a response agrees with the response pattern.

    As many channels are read as +1 as the pattern holds: those of the largest d, ties going to the lower channel index.
    Given that count the split does not depend on the key, so an offset or a scale of d, or a constant d, cannot bias it.

    Args:
        d (array, shape `(C,)`): response d_b, averaged over trials; any unit, real, finite.
        s (array, shape `(C,)`): response pattern in {-1, +1}, balanced: C // 2 or C - C // 2 of them +1; C >= 2.

    Returns:
        `int`: 0 to C. For odd C at least 1, and always of the parity of C.

    Raises:
        ShapeError: d or s is not a vector, or their lengths differ.
        ConfigError: s is not a balanced pattern.
        NotTestableError: d is not finite.

    Source: our definition.
    """
    # Not through float32: rounding would create ties, and so a dependence on channel order.
    response, pattern = np.asarray(d, dtype=np.float64), np.asarray(s)
    if response.ndim != 1 or response.shape != pattern.shape:
        raise ShapeError(f"d has shape {response.shape}, s has shape {pattern.shape}: both must be (C,)")
    channels, plus = pattern.size, int(np.count_nonzero(pattern == 1))
    if channels < 2 or plus + np.count_nonzero(pattern == -1) != channels or abs(channels - 2 * plus) > 1:
        raise ConfigError(f"s must hold +1 and -1 in equal numbers: {plus} of {channels} entries are +1")
    if not np.isfinite(response).all():
        bad = np.count_nonzero(~np.isfinite(response))
        raise NotTestableError(f"{bad} of {channels} channels of the response are not finite: the suspect overflows")
    read = np.full(channels, -1)
    read[np.argsort(-response, kind="stable")[:plus]] = 1
    return int(np.count_nonzero(read == pattern))


def is_split(d: ArrayLike) -> bool:
    """Whether a response says by itself which half of its channels is the larger one.

    Where the split falls among values that are the same in more than half of the channels, the order of the channels decides
    and not the suspect: a constant d reads alike for every suspect, and whoever wrote the record can search keys for that.

    Args:
        d (array, shape `(C,)`): response of one out-site, C >= 2.
    Source: our choice. It knows no response pattern, so p-values of the sites that are left stay exact.
    """
    response = np.asarray(d, dtype=np.float64)
    ordered, middle = np.sort(response), len(response) - len(response) // 2
    below, above = ordered[middle - 1], ordered[middle]
    # What is not finite is refused by `hits`, with its reason.
    return (
        bool(below != above)
        or not np.isfinite(response).all()
        or 2 * int(np.count_nonzero(response == above)) <= len(response)
    )


def site_log10_p(channels: int, plus: int, hits: int) -> float:
    """Exact p-value of one site: `combined_log10_p` of it alone."""
    return combined_log10_p([SiteHits(channels, plus, hits)])


def combined_log10_p(sites: Sequence[tuple[int, int, int]]) -> float:
    """Exact probability, under the null, of at least as many hits in total as were seen.

    The hits of all sites add up; their law is the exact convolution of the sites' hypergeometric laws, so a wide site
    weighs more than a narrow one, and no site is picked after the fact.

    Args:
        sites: `SiteHits` (or plain triples), one per out-site, at least one; each site once.

    Returns:
        `float`: log10 p, from `floor_log10_p(sites)` to 0; relative error below 1e-9 anywhere in the range.

    Raises:
        NotTestableError: no site, for nothing compared is never a verdict.
        ConfigError: a site that `hits` cannot have produced.

    Source: hypergeometric tail (Fisher's exact test with both margins fixed); the tilting is Esscher's.
    """
    kinds, total = count_sites(sites)
    return _log_upper_tail(kinds, total) / _LN10


def floor_log10_p(sites: Sequence[tuple[int, int, int]]) -> float:
    """The smallest log10 p that these sites allow, all channels hit: minus the sum of log10 binom(C, plus).

    Args:
        sites: as for `combined_log10_p`; hits are checked but do not matter.

    Raises:
        NotTestableError, ConfigError: as for `combined_log10_p`.
    """
    kinds, _ = count_sites(sites)
    return -sum(count * float(log_binom(channels, n)) for (channels, n), count in kinds.items()) / _LN10


def randomised_p(sites: Sequence[tuple[int, int, int]], u: float) -> float:
    """The combined p-value with its steps filled in: P(more hits) + u P(exactly these hits).

    The combined p is discrete, hence larger than uniform; for u uniform on [0, 1) this one is exactly uniform under the
    null, as a Kolmogorov-Smirnov test asks. For checking calibration only: a verdict must not hang on a drawn number.

    Args:
        sites: as for `combined_log10_p`.
        u (`float`): in [0, 1), drawn independently of the sites.

    Returns:
        `float`: p itself, not its logarithm, in [0, 1).

    Raises:
        NotTestableError, ConfigError: as for `combined_log10_p`. ConfigError: u outside [0, 1).
    """
    if not 0 <= u < 1:
        raise ConfigError(f"u must be in [0, 1), got {u}")
    kinds, total = count_sites(sites)
    more, at_least = (math.exp(_log_upper_tail(kinds, start)) for start in (total + 1, total))
    return more + u * (at_least - more)


class HitLaw:
    """The law of j at one site: hypergeometric, on 0 .. n; a `tail.Law`."""

    def __init__(self, channels: int, n: int) -> None:
        self.log_pmf = log_pmf(channels, n)

    def _tilt(self, theta: float) -> tuple[NDArray[np.float64], float]:
        """The tilted law, and the norm that undoes it."""
        row = self.log_pmf + theta * np.arange(self.log_pmf.size)
        peak = float(row.max())
        mass = np.exp(row - peak)
        return mass / mass.sum(), peak + math.log(float(mass.sum()))

    def mean(self, theta: float) -> float:
        pmf, _ = self._tilt(theta)
        return float(pmf @ np.arange(pmf.size))

    def spectrum(self, theta: float, size: int) -> tuple[NDArray[np.complex128], float]:
        pmf, norm = self._tilt(theta)
        return fft.rfft(pmf, size), norm


@lru_cache(maxsize=64)
def log_pmf(channels: int, n: int) -> NDArray[np.float64]:
    """Natural log of the law of j, shape (n + 1,), read-only."""
    j = np.arange(n + 1)
    law = log_binom(n, j) + log_binom(channels - n, n - j) - log_binom(channels, n)
    law.setflags(write=False)
    return law


def _log_upper_tail(kinds: Counter[tuple[int, int]], start: int) -> float:
    """Natural log of P(sum of j over all sites >= start)."""
    top = sum(n * count for (_, n), count in kinds.items())
    if start <= 0:
        return 0.0
    if start > top:
        return -math.inf
    laws = [(HitLaw(channels, n), count) for (channels, n), count in kinds.items()]
    window = Window(0, top + 1, fft.next_fast_len(top + 1, real=True))
    # At |theta| = 128 all mass is at an end: exp(128) exceeds sites x C^2 by far for any C that fits in memory.
    return log_upper_tail(laws, start, window, steepest=128, step=2**-10)


def count_sites(sites: Sequence[tuple[int, int, int]]) -> tuple[Counter[tuple[int, int]], int]:
    """Sites by kind (C, n), and the sum of their j."""
    if not len(sites):
        raise NotTestableError("no site was compared: nothing compared is never a verdict")
    kinds: Counter[tuple[int, int]] = Counter()
    total = 0
    for channels, plus, agreeing in sites:
        n = min(plus, channels - plus)
        j, odd = divmod(agreeing - (channels - 2 * n), 2)
        if n < 1 or odd or not 0 <= j <= n:
            raise ConfigError(
                f"site (channels={channels}, plus={plus}, hits={agreeing}): needs 0 < plus < channels, and hits in "
                f"|channels - 2 plus|..channels in steps of 2"
            )
        kinds[channels, n] += 1
        total += j
    return kinds, total
