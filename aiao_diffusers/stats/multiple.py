"""Several tests at once, and intervals of rates."""

import math
from collections.abc import Sequence

from scipy import stats

from ..errors import ConfigError


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
