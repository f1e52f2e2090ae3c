"""Controls: other unmarked models that are asked the same question, whose answer must be no."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .report import VerificationReport
from .suspect import label_of


_OF_THE_OWNER = ("beyond the twin", "aligned", "healed, aligned")
"""Beginnings of the labels of looks that rest on what the claimant hands over: the clean twin, or a reference made of it."""


def named_controls(controls: Any) -> dict[str, Any]:
    """Controls by the name that the report gives them; one, a sequence, or a mapping from names."""
    if controls is None:
        return {}
    if isinstance(controls, Mapping):
        return dict(controls)
    models = list(controls) if isinstance(controls, list | tuple) else [controls]
    labels = [label_of(model) for model in models]
    return {
        label if labels.count(label) == 1 else f"{label} ({number})": model
        for number, (label, model) in enumerate(zip(labels, models, strict=True), 1)
    }


def ask_controls(
    report: VerificationReport, controls: Any, ask: Callable[[Any], VerificationReport], twin_sha256: str | None
) -> VerificationReport:
    """`report` with the answers of the controls.

    A control that verifies shows that the question itself is at fault (its record, twin or reference was made to say yes), so the
    suspect's answer is none: the verdict becomes `not_testable`.

    Args:
        report: of the suspect. controls: as `named_controls` takes them. ask: puts the suspect's question to a model.
        twin_sha256: hash of the clean twin's weights, where one was offered.
    """
    named = named_controls(controls)
    holding = []
    for name, model in named.items():
        control = ask(model)
        report = report.with_control(name, control)
        holding += [name] if (control.lineage or {}).get("verdict") == "verified" else []
        if control.verdict == "not_testable":
            report = report.with_warning(f"the control {name} was not read and controls nothing: {control.reason}")
        if twin_sha256 is not None and control.hashes.get("suspect") == twin_sha256:
            report = report.with_warning(
                f"{name} is the clean twin, which answers nothing beyond itself: another unmarked model controls that look."
            )
    if holding and not report.asks_lineage and report.lineage is not None:
        report = replace(report, lineage=_without_claim(report.lineage, holding))
    passed = [name for name in named if report.controls[name]["verdict"] == "verified"]
    if passed:
        return replace(
            report,
            verdict="not_testable",
            proves="nothing",
            reason=f"the control {', '.join(passed)} verifies too: either it is marked itself, or the record, the twin or the "
            "reference makes unmarked models answer. Pass a model that is known to be unmarked, and ask who wrote the record.",
        )
    if report.verified and not named and not _seen_plainly(report):
        return report.with_warning(
            "it verifies only through the clean twin or the reference, which the claimant made: pass controls= (--control), "
            "another unmarked model that is read through the same."
        )
    return report


def _without_claim(lineage: Mapping[str, Any], holding: Sequence[str]) -> dict[str, Any]:
    """A lineage that stands beside the verdict, once controls verified at that question."""
    reason = (
        f"the control {', '.join(holding)} holds the mark's directions too: pass a model that is known to be unmarked."
    )
    return {**lineage, "verdict": "not_testable", "claim": "", "reason": reason, "in_words": f"not_testable: {reason}"}


def _seen_plainly(report: VerificationReport) -> bool:
    """Whether a look that needs nothing of the claimant's but the record verifies."""
    return any(
        look["log10_p_adjusted"] <= math.log10(report.alpha)
        for look in report.looks
        if not look["label"].startswith(_OF_THE_OWNER)
    )
