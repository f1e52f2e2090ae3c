"""Looks at growing evidence: one p-value, valid whenever one stops."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import ConfigError, NotTestableError


Verdict = Literal["verified", "not_verified", "not_testable"]


@dataclass(frozen=True)
class Look:
    """One look at the evidence.

    Attributes:
        number (`int`): k = 1, 2, ...
        label (`str`): what was read, such as "plain" or "amplitude x2".
        trials (`int`): trials averaged for it, at least 1.
        log10_p (`float`): this look's own p-value; finite, at most 0.
        factor (`int`, defaults to 1): of the whole test, which p is multiplied by.
    """

    number: int
    label: str
    trials: int
    log10_p: float
    factor: int = 1

    def __post_init__(self) -> None:
        if self.number < 1 or self.trials < 1:
            raise ConfigError(f"look {self.label!r}: number {self.number} and trials {self.trials} must be at least 1")
        if not -math.inf < self.log10_p <= 0:
            raise ConfigError(f"look {self.label!r}: log10 p must be finite and at most 0, got {self.log10_p}")

    @property
    def log10_p_adjusted(self) -> float:
        """log10 of min(1, p 2^k), times the factor."""
        return min(0.0, self.log10_p + self.number * math.log10(2) + math.log10(self.factor))


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
        factor (`int`, defaults to 1): how many tests could have been shown in this one's place; p is multiplied by it.

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
    factor: int = 1

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ConfigError(f"factor must be at least 1, got {self.factor}")
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
        return replace(self, looks=(*self.looks, Look(len(self.looks) + 1, label, trials, log10_p, self.factor)))

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
