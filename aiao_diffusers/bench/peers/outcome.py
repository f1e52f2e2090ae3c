"""What a method's own rule says of a suspect."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...stats.hits import combined_log10_p, hits


@dataclass(frozen=True)
class Outcome:
    """One verification.

    Args:
        verdict (`str`): `verified`, `not_verified` or `not_testable`.
        log10_p (`float`, *optional*): None where the method has no p-value.
        bits (`float`, *optional*): share of agreeing bits, all trials together; chance is .5.
        passed, trials (`int`): single trials with p <= alpha, and how many were run: the verification rate.
        evals (`int`): single-sample denoiser forwards spent.
        statistic (`float`, *optional*): what the rule compares where there is no p-value.
        look (`str`, *optional*): which of several looks the p-value is of. looks (`dict`, *optional*): log10 p by look, before
            any look pays for having been taken; of those after 1, 2, 4, ... trials the last.
    """

    verdict: str
    log10_p: float | None = None
    bits: float | None = None
    passed: int = 0
    trials: int = 0
    evals: int = 0
    statistic: float | None = None
    look: str | None = None
    looks: dict[str, float] | None = None


def outcome_of_looks(
    verdict: str,
    log10_p: float | None,
    bits: float | None,
    looks: Sequence[Mapping[str, Any]],
    *,
    passed: int,
    trials: int,
    evals: int,
) -> Outcome:
    """Of a reading by several looks, as `Looks.to_dicts` and a report give them; `look` is the one that came nearest."""
    # As `looks` chooses whose bits are reported: adjusted p-values of an unmarked model are all 1.
    nearest = min(looks, key=lambda k: (k["log10_p_adjusted"], k["log10_p"]), default={"label": None})
    by_label = {look["label"]: look["log10_p"] for look in looks}
    return Outcome(verdict, log10_p, bits, passed, trials, evals, look=nearest["label"], looks=by_label)


def outcome_of_bits(read: np.ndarray, secret: np.ndarray, *, alpha: float, evals: int) -> Outcome:
    """The rule of peers that paint bits: the median split of what was read against the secret, exact as our own.

    Args:
        read: `(trials, bits)`, one picture a row; the verdict is on the rows' mean, the verification rate on each.
        secret: `(bits,)` of +-1, balanced. evals (`int`): denoiser forwards spent on all of it.
    """
    size, plus, limit = len(secret), int((secret > 0).sum()), math.log10(alpha)
    alone = [combined_log10_p([(size, plus, hits(row, secret))]) for row in read]
    agreeing = hits(read.mean(0), secret)
    log10_p = combined_log10_p([(size, plus, agreeing)])
    return Outcome(
        "verified" if log10_p <= limit else "not_verified",
        log10_p,
        agreeing / size,
        sum(p <= limit for p in alone),
        len(read),
        evals,
    )
