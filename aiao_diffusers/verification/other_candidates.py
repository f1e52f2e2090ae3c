"""The strict mode of `verify`: every other file of an upload that somebody would load is a suspect of its own."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..errors import AIAOError
from ..files.text import short
from ..stats.multiple import holm
from .plan import ReadingPlan
from .report import VerificationReport


def read_others(
    report: VerificationReport, ask: Callable[..., VerificationReport], plan: ReadingPlan
) -> VerificationReport:
    """`report` with a verdict on each of `also_present`, and a warning for each that differs from its own.

    The judged file's verdict stays as it is: the rule named that file before anything was read, so nothing was chosen by a
    p-value. The others' verdicts are by Holm's adjustment over all files read: the chance of even one false `verified` among
    them is at most alpha.

    Args:
        report: of the file that the stock loader runs, or `not_testable`.
        ask: `verify` of the same upload, which takes `weight_name` and `plan`. plan: the one that the judged file was read by.
    Source: Holm 1979; our choice of the family.
    """
    readable = [item for item in report.also_present if item["kind"] != "pickle"]
    # A reading ends where it verifies at its alpha: it must go as far as the adjustment can ask.
    plan = replace(plan, alpha=report.alpha / (1 + len(readable)))
    told = [_read(item, ask, plan) if item in readable else item for item in report.also_present]
    known = [item for item in told if item.get("log10_p") is not None]
    first = [] if report.log10_p is None else [report.log10_p]
    adjusted = holm([*first, *(item["log10_p"] for item in known)])[len(first) :]
    for item, value in zip(known, adjusted, strict=True):
        verdict = "verified" if value <= math.log10(report.alpha) else "not_verified"
        item.update(verdict=verdict, log10_p_holm=value)
        if verdict != report.verdict:
            report = report.with_warning(
                f"{item['path']} is {verdict} (log10 p {item['log10_p']:.1f}, {value:.1f} after Holm's adjustment over "
                f"{len(first) + len(known)} files): not as the judged file, which is {report.verdict}."
                + ("" if report.asks_lineage else " Whoever loads it runs other weights.")
            )
    return replace(report, also_present=tuple(told))


def warn_of_unread(report: VerificationReport, read: str) -> VerificationReport:
    """`report` with a warning that names what lies beside the judged weights, could be loaded, and was not read.

    Args:
        report: after `read_others`, where that was asked for. read: where the judged weights lie, in words.
    """
    unread = [item for item in report.also_present if item.get("log10_p") is None]
    if not unread or not read:
        return report
    tried = any("verdict" in item for item in report.also_present)
    names = short(", ".join(item["path"] for item in unread), 300)
    if tried or all(item["kind"] == "pickle" for item in unread):
        return report.with_warning(f"{read} was read; it also holds {names}, which could not be read.")
    return report.with_warning(
        f"{read} was read; it also holds {names}: weight_name= reads one of them, all_candidates=True (--all) each."
    )


def _read(item: dict[str, Any], ask: Callable[..., VerificationReport], plan: ReadingPlan) -> dict[str, Any]:
    try:
        report = ask(weight_name=item["path"], plan=plan)
    except AIAOError as error:  # a broken or incomplete neighbour is no reason to lose the verdict on the judged file
        return {**item, "verdict": "not_testable", "log10_p": None, "reason": str(error)}
    return {**item, "verdict": report.verdict, "log10_p": report.log10_p, "reason": report.reason}
