"""A control in every report: the same readings against response patterns of nobody, whose p-values must look uniform."""

from typing import Any

import numpy as np

from ..mark.key import WatermarkKey
from .evidence import Evidence


def wrong_responses(
    response: dict[str, np.ndarray], key: WatermarkKey, count: int | None = None, *, ranks: bool = False
) -> dict[str, Any]:
    """The same readings against `count` wrong response patterns: their p-values must look uniform.

    Args:
        count (`int`, *optional*): default 100, of rank scores 20: those of a wide model take up to seconds each.
        ranks (`bool`): by rank scores, if the verdict is by them.

    Returns:
        `{"n", "median_log10_p", "smallest_log10_p", "hits"}`; about -.3 and -log10(n) are expected. `hits` holds each
        pattern's total, for a histogram.
    """
    count = count or (20 if ranks else 100)
    values, totals = [], []
    for number in range(count):
        wrong = key.child(f"control/{number}")
        other = Evidence(wrong, response)
        values.append(other.rank_log10_p() if ranks else other.log10_p())
        totals.append(sum(agreeing for _, (_, _, agreeing) in other.triples(response)))
    return {
        "n": count,
        "median_log10_p": float(np.median(values)),
        "smallest_log10_p": float(min(values)),
        "hits": totals,
    }
