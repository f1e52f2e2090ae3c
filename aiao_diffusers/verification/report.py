"""The report of one verification: its outcome as JSON, Markdown, HTML or a plot."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..files.text import markdown_table
from .outcome import VerificationOutcome


COLUMNS = ("out-site", "channels", "hits", "log10 p")
LINEAGE_COLUMNS = ("carrier site", *COLUMNS[1:])


@dataclass(frozen=True)
class VerificationReport(VerificationOutcome):
    """An `VerificationOutcome`, which says its fields, and the ways to show it."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the fields of the public contract and some more."""
        return json.loads(json.dumps({**asdict(self), "proves_in_words": self.proves_in_words}))

    def to_markdown(self) -> str:
        """The report for people."""
        lines = [f"# {self.verdict}: {self.suspect}", "", self.proves_in_words, ""]
        if self.dating:
            lines += [self.dating["assumption"], ""]
        if self.probes is not None:
            lines += [self.probes_in_words, ""]
        if self.reason:
            lines += [f"Reason: {self.reason}", ""]
        if self.log10_p is not None:
            lines += [
                f"- log10 p = {self.log10_p:.1f} (alpha {self.alpha:g}; these bits can reach {self.log10_p_floor:.1f})",
                f"- bit accuracy {self.bit_accuracy:.3f} (chance .5)",
                *_rate_line(self),
                f"- denoiser evaluations: {self.denoiser_evals}; base: {self.base or 'none'}",
                *_plan_line(self.plan, len(self.looks)),
                "",
                markdown_table(
                    LINEAGE_COLUMNS if self.asks_lineage else COLUMNS,
                    [(s.name, f"{s.channels}", f"{s.hits}", f"{s.log10_p:.1f}") for s in self.sites],
                ),
                "",
            ]
        if self.lineage and not self.asks_lineage:
            lines += [f"- lineage ({self.lineage_source}): {self.lineage['in_words']}"]
        lines += [f"- {name}: {told}" for name, told in self.source_in_words.items()]
        lines += [f"- control `{name}`: {told}" for name, told in self.controls_in_words.items()]
        lines += [f"- also present: {text}" for text in self.also_present_in_words]
        lines += [f"- warning: {text}" for text in self.warnings]
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """The report as one self-contained page with plots.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from .report_html import page

        return page(self)

    def plot(self) -> Any:
        """A matplotlib figure: hits by site, the null and the observed value, the sub-paths, the rate.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from .plots import figure

        return figure(self)


def _rate_line(report: VerificationReport) -> list[str]:
    """Over trials; a reading without any has none."""
    if report.verification_rate is None:
        return []
    low, high = report.verification_rate_ci or (0.0, 1.0)
    rate = f"{report.verification_rate:.2f} over {report.trials} trials"
    return [f"- verification rate {rate}, 95% CI {low:.2f}-{high:.2f}"]


def _plan_line(plan: dict[str, Any], taken: int) -> list[str]:
    """The plan in one line; nothing for reports of older versions."""
    if not plan:
        return []
    ended = f"; ended: {plan['ended']}" if "ended" in plan else ""
    return [
        f"- plan: {plan['name']}, {taken} of {len(plan['looks'])} looks taken, in an order fixed beforehand{ended}"
    ]
