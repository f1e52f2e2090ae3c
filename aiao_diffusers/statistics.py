"""Exact p-values of a watermark reading: median-split hits, their convolution over sites, sequential looks, intervals.

Null hypothesis: "the suspect was made without knowledge of the key's secret". Every p-value here is exact under it, or
valid (never too small), for *any* suspect, trained or random, with no calibration set. That rests on three assumptions:

1. Response patterns are balanced and uniform among the balanced ones, independent from site to site. If not (a biased
   shuffle, one pattern reused at two sites), the hypergeometric law is wrong and sites must not be convolved.
2. Response patterns are independent of whatever d was read with: the trigger masks, the probe bank, an alignment. If not
   (a response pattern derived from a trigger mask, an alignment fitted to the marked model), a suspect that merely
   passes its input through can agree with the key.
3. The key was fixed before the suspect was seen. If not, a claimant draws keys until one fits: the best of n keys has
   p near 1/n, and nothing computed here can tell. A dated commitment answers it, statistics do not.

All p-values are log10, so that they stay finite. A site is the triple `(channels, plus, hits)`: width C, number of +1
in its response pattern, hits. With n = min(plus, C - plus), hits = C - 2n + 2j, where j is hypergeometric:

    P(j) = binom(n, j) binom(C - n, n - j) / binom(C, n),    j = 0 .. n

so `plus` and `C - plus` give the same law, and a balanced site's p-value follows from its width and hits alone.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, optimize, special, stats

from aiao_diffusers.errors import ConfigError, NotTestableError, ShapeError


Site = tuple[int, int, int]
Verdict = Literal["verified", "not_verified", "not_testable"]

_LN10 = math.log(10)


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


def triple(d: NDArray[Any], s: NDArray[Any]) -> Site:
    """`(channels, plus, hits)` of a response d against a response pattern s, both `(C,)`; raises as `hits`."""
    return len(s), int((s > 0).sum()), hits(d, s)


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


def site_log10_p(channels: int, plus: int, hits: int) -> float:
    """Exact p-value of one site: `combined_log10_p` of it alone."""
    return combined_log10_p([(channels, plus, hits)])


def combined_log10_p(sites: Sequence[Site]) -> float:
    """Exact probability, under the null, of at least as many hits in total as were seen.

    The hits of all sites add up; their law is the exact convolution of the sites' hypergeometric laws, so a wide site
    weighs more than a narrow one, and no site is picked after the fact.

    Args:
        sites: triples `(channels, plus, hits)`, one per out-site, at least one; each site once.

    Returns:
        `float`: log10 p, from `floor_log10_p(sites)` to 0; relative error below 1e-9 anywhere in the range.

    Raises:
        NotTestableError: no site, for nothing compared is never a verdict.
        ConfigError: a triple that `hits` cannot have produced.

    Source: hypergeometric tail (Fisher's exact test with both margins fixed); the tilting is Esscher's.
    """
    kinds, total = _count(sites)
    return _log_upper_tail(kinds, total) / _LN10


def floor_log10_p(sites: Sequence[Site]) -> float:
    """The smallest log10 p that these sites allow, all channels hit: minus the sum of log10 binom(C, plus).

    Args:
        sites: triples as for `combined_log10_p`; hits are checked but do not matter.

    Raises:
        NotTestableError, ConfigError: as for `combined_log10_p`.
    """
    kinds, _ = _count(sites)
    return -sum(count * float(_log_binom(channels, n)) for (channels, n), count in kinds.items()) / _LN10


def randomised_p(sites: Sequence[Site], u: float) -> float:
    """The combined p-value with its steps filled in: P(more hits) + u P(exactly these hits).

    The combined p is discrete, hence larger than uniform; for u uniform on [0, 1) this one is exactly uniform under the
    null, as a Kolmogorov-Smirnov test asks. For checking calibration only: a verdict must not hang on a drawn number.

    Args:
        sites: triples as for `combined_log10_p`.
        u (`float`): in [0, 1), drawn independently of the sites.

    Returns:
        `float`: p itself, not its logarithm, in [0, 1).

    Raises:
        NotTestableError, ConfigError: as for `combined_log10_p`. ConfigError: u outside [0, 1).
    """
    if not 0 <= u < 1:
        raise ConfigError(f"u must be in [0, 1), got {u}")
    kinds, total = _count(sites)
    more, at_least = (math.exp(_log_upper_tail(kinds, start)) for start in (total + 1, total))
    return more + u * (at_least - more)


@dataclass(frozen=True)
class Look:
    """One look at the evidence.

    Attributes:
        number (`int`): k = 1, 2, ...
        label (`str`): what was read, such as "plain" or "amplitude x2".
        trials (`int`): trials averaged for it, at least 1.
        log10_p (`float`): this look's own p-value; finite, at most 0.
    """

    number: int
    label: str
    trials: int
    log10_p: float

    def __post_init__(self) -> None:
        if self.number < 1 or self.trials < 1:
            raise ConfigError(f"look {self.label!r}: number {self.number} and trials {self.trials} must be at least 1")
        if not -math.inf < self.log10_p <= 0:
            raise ConfigError(f"look {self.label!r}: log10 p must be finite and at most 0, got {self.log10_p}")

    @property
    def log10_p_adjusted(self) -> float:
        """log10 of min(1, p 2^k)."""
        return min(0.0, self.log10_p + self.number * math.log10(2))


@dataclass(frozen=True)
class SequentialTest:
    """Looks at growing or changing evidence, each paying its share of alpha: the k-th is adjusted to min(1, p 2^k).

    The reported p-value is the smallest adjusted one. It is valid however the looks depend on each other and whenever
    one stops. Proof: let p_k be the p-value of look k, so P(p_k <= t) <= t under the null, were the look ever taken.
    The reported value is at least p* = inf over all k >= 1 of min(1, p_k 2^k), taken or not, and for a < 1

        P(p* <= a) <= sum_k P(p_k <= a 2^-k) <= sum_k a 2^-k = a        (union bound; an infimum at a is attained,
                                                                         for p_k 2^k <= a needs a finite k)

    What breaks it: choosing *what* look k reads by the outcome of an earlier look. The list and its order must be fixed
    beforehand; only *whether* to go on may depend on what was seen. Leaving a failed look out breaks it as well.

    Attributes:
        alpha (`float`, defaults to 1e-6): chance of a false `verified`, in (0, 1).
        looks (`tuple[Look, ...]`): those taken so far, numbered 1, 2, ...

    Example:
        >>> test = SequentialTest(alpha=1e-6).look("plain", trials=4, log10_p=-5.9)
        >>> test.verdict
        'not_verified'
        >>> test.look("amplitude x2", trials=4, log10_p=-8.0).verdict
        'verified'

    Source: Bonferroni over a geometric spending of alpha; our choice.
    """

    alpha: float = 1e-6
    looks: tuple[Look, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha must be in (0, 1), got {self.alpha}")
        numbers = [look.number for look in self.looks]
        if numbers != list(range(1, len(numbers) + 1)):
            raise ConfigError(f"looks must be numbered 1, 2, ... without a gap, got {numbers}")

    def look(self, label: str, *, trials: int, log10_p: float) -> "SequentialTest":
        """This test with one more look; self is unchanged.

        Raises:
            ConfigError: trials below 1, or a log10 p that is not finite or above 0.
        """
        return replace(self, looks=(*self.looks, Look(len(self.looks) + 1, label, trials, log10_p)))

    @property
    def log10_p(self) -> float:
        """log10 of the reported p-value. Raises NotTestableError before the first look."""
        if not self.looks:
            raise NotTestableError("no look was taken: there is no p-value to report")
        return min(look.log10_p_adjusted for look in self.looks)

    @property
    def verdict(self) -> Verdict:
        """`verified` once a look has spent its way below alpha, for good; `not_testable` before the first look."""
        if not self.looks:
            return "not_testable"
        return "verified" if self.log10_p <= math.log10(self.alpha) else "not_verified"


def holm(log10_p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: accept every p whose adjusted value is at most alpha, and the chance of even one false
    acceptance among all of them is at most alpha.

    Args:
        log10_p: log10 of valid p-values, one a test, at most 0; they may depend on each other in any way.

    Returns:
        `list[float]`: log10 of the adjusted p-values, in the order given, each at most 0.

    Source: Holm 1979; uniformly more powerful than Bonferroni, with no assumption on dependence.
    """
    adjusted, largest = [0.0] * len(log10_p), -math.inf
    for rank, i in enumerate(sorted(range(len(log10_p)), key=lambda i: log10_p[i])):
        largest = max(largest, min(0.0, log10_p[i] + math.log10(len(log10_p) - rank)))
        adjusted[i] = largest
    return adjusted


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a binomial rate, such as the verification rate; covers at least `confidence`.

    Low solves P(X >= successes | low) = (1 - confidence) / 2 and is 0 at no success; high solves
    P(X <= successes | high) = (1 - confidence) / 2 and is 1 at no failure.

    Args:
        successes (`int`): 0 to n.
        n (`int`): independent trials, at least 1. Trials of one suspect share its weights: the interval is about
            drawing further trials of it, not about further suspects.
        confidence (`float`, defaults to 0.95): in (0, 1).

    Raises:
        ConfigError: an argument out of range.

    Source: Clopper and Pearson, Biometrika 26 (1934), by quantiles of the beta distribution.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ConfigError(f"successes must be in 0..n and n at least 1, got {successes} of {n}")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be in (0, 1), got {confidence}")
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, successes, n - successes + 1)) if successes > 0 else 0.0
    high = float(stats.beta.isf(tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


def _count(sites: Sequence[Site]) -> tuple[Counter[tuple[int, int]], int]:
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


def _log_binom(n: Any, k: Any) -> NDArray[np.float64]:
    return np.asarray(special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1))


@lru_cache(maxsize=64)
def _log_pmf(channels: int, n: int) -> NDArray[np.float64]:
    """Natural log of the law of j, shape (n + 1,), read-only."""
    j = np.arange(n + 1)
    law = _log_binom(n, j) + _log_binom(channels - n, n - j) - _log_binom(channels, n)
    law.setflags(write=False)
    return law


def _log_upper_tail(kinds: Counter[tuple[int, int]], start: int) -> float:
    """Natural log of P(sum of j over all sites >= start).

    Every law is tilted by exp(theta j), with theta such that the tilted sum has its mean at the tail's edge. Tilting
    commutes with convolution, so the convolution is done where the mass lies, by FFT, and the tilt is taken out of
    the tail sum afterwards. Untilted, a law of 1,280 channels (down to 1e-383) underflows, and FFT rounding buries
    whatever lies below 1e-16.
    """
    top = sum(n * count for (_, n), count in kinds.items())
    if start <= 0:
        return 0.0
    if start > top:
        return -math.inf
    laws = [(_log_pmf(channels, n), count) for (channels, n), count in kinds.items()]

    def tilted(theta: float) -> list[tuple[NDArray[np.float64], float, int]]:
        rows = []
        for law, count in laws:
            row = law + theta * np.arange(law.size)
            peak = float(row.max())
            mass = np.exp(row - peak)
            rows.append((mass / mass.sum(), peak + math.log(float(mass.sum())), count))
        return rows

    def excess(theta: float) -> float:
        means = sum(count * float(pmf @ np.arange(pmf.size)) for pmf, _, count in tilted(theta))
        return means - (start - 0.5)

    # At |theta| = 100 all mass is at an end: exp(100) exceeds sites x C^2 by far for any C that fits in memory.
    # The identity holds at any theta; it only has to bring the mass within a fraction of a deviation of the edge.
    theta = float(optimize.brentq(excess, -100, 100, xtol=1e-3))
    size = fft.next_fast_len(top + 1, real=True)
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    log_norm = 0.0
    for pmf, norm, count in tilted(theta):
        spectrum *= fft.rfft(pmf, size) ** count
        log_norm += count * norm
    law = fft.irfft(spectrum, size)[: top + 1]
    offset = np.arange(top + 1) - start

    # Sum on the side where removing the tilt shrinks the terms: on the other it would amplify the FFT's rounding.
    side = offset >= 0 if theta > 0 else offset < 0
    log_tail = log_norm - theta * start + math.log(float(law[side] @ np.exp(-theta * offset[side])))
    return log_tail if theta > 0 else math.log1p(-math.exp(log_tail))
