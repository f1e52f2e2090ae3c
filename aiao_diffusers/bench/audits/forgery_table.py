"""The tables of `aiao bench forgery`, from a result just measured or one that was kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ResultsError
from ...files.strict_json import read_json
from ...files.text import markdown_table


BEFORE = (
    *("forgery", "record believed: log10 p", "on a later fine-tune", "`verify`, a fine-tune as control"),
    "with a judge's probes",
)
AFTER = (
    *("forgery", "log10 p at a guessed beacon", "draws", "KS p (two-sided, too many small)"),
    *("smallest log10 p (95% of uniform ones)", "at most 1e-6"),
)
_WIDEST = 90  # characters of a reason


def load(path: Path) -> dict[str, Any]:
    """A result that was kept.

    Raises:
        ResultsError: no such file, or not one of `aiao bench forgery`.
    """
    result = read_json(path)
    if not {"rows", "late", "effort", "cost", "draws", "trials"} <= set(result):
        raise ResultsError(
            f"'{path}' is no result of `aiao bench forgery`: pass the forgery.json that it wrote with -o."
        )
    return result


def verdicts(result: Mapping[str, Any]) -> int:
    """How many draws of scheme `aiao-2` gave a verdict."""
    return sum(row["aiao-2"]["verdicts"] for row in result["rows"])


def markdown(result: Mapping[str, Any]) -> str:
    """The tables for people."""
    effort, late, cost = result["effort"], result["late"], result["cost"]
    before = [
        (
            row["forgery"],
            f"{row['aiao-1']['believed']:.1f}",
            f"{row['aiao-1']['later']:.1f}",
            _said(row["aiao-1"].get("verify")),
            _said(row["aiao-1"].get("probes")),
        )
        for row in result["rows"]
    ]
    told = (
        f"{effort['steps']} steps of ascent, {effort['keys']} keys, {effort['guesses']} guessed beacons, {effort['tune']} steps of "
        f"fine-tuning; looks of {result['trials']} trials; seed {result['seed']}."
    )
    evaluations = ", ".join(f"{scheme} {count}" for scheme, count in cost["evaluations"].items())
    lines = [
        told,
        "",
        "Scheme aiao-1:",
        "",
        markdown_table(BEFORE, before),
        "",
        "Scheme aiao-2, the record believed and nothing spent on further looks:",
        "",
        markdown_table(AFTER, [_drawn(row["forgery"], row["aiao-2"]) for row in result["rows"]]),
        "",
        f"A bank exchanged after the commitment's date: aiao-1 {_said(late['aiao-1'])}; aiao-2 "
        f"{'refuses the record' if late['aiao-2'] else 'takes the record'}. Committed anew once the beacon is known, with a frozen "
        f"schedule: {_said(late['anew'])}, {late['anew'].get('dating')}.",
        "",
        f"An honest record costs the same to read under both: {evaluations} evaluations, aiao-2 in {cost['seconds_ratio']:.2f} of the "
        f"seconds (median of {cost['repeats']}).",
    ]
    return "\n".join(lines) + "\n"


def _drawn(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = found["expected"]
    return (
        name + (" (refused whatever the beacon)" if found["refused"] else ""),
        f"{found['guessed']:.1f}",
        str(found["draws"]),
        f"{found['ks_p']:.3f}, {found['ks_p_small']:.3f}",
        f"{found['smallest']:.2f} ({low:.2f} to {high:.2f})",
        str(found["verdicts"]),
    )


def _said(told: Mapping[str, Any] | None) -> str:
    """What a reading came to, in a cell."""
    if told is None:
        return "-"
    if told.get("refused"):
        return "refused: " + _cut(told["refused"])
    value = "" if told["log10_p"] is None else f" ({told['log10_p']:.1f})"
    reason = f": {_cut(told['reason'])}" if told.get("reason") else ""
    return f"{told['verdict']}{value}{reason}"


def _cut(text: str) -> str:
    first = text.replace("|", "/").replace("\n", " ")
    return first if len(first) <= _WIDEST else first[: _WIDEST - 1].rstrip() + "…"
