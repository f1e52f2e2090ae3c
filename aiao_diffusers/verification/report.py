"""The report of one verification: frozen data, as JSON, Markdown or a plot."""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..stats.hits import SiteTest
from .claims import PROVES


@dataclass(frozen=True)
class VerificationReport:
    """What was read, and what follows.

    Args:
        verdict (`str`): `verified`, `not_verified` or `not_testable`; reason (`str`): why, in the last case.
        log10_p (`float`, *optional*): log10 of the p-value under "made without knowledge of the secret", after paying for
            every look; log10_p_floor: the smallest value that the bits read can give.
        alpha (`float`): significance asked for. bit_accuracy (`float`): share of agreeing bits; chance is .5.
        verification_rate (`float`): share of single plain trials with p <= alpha; verification_rate_ci: its 95%
            Clopper-Pearson interval; trials (`int`): plain trials run.
        denoiser_evals (`int`): single-sample forwards spent. sites: the test of each out-site.
        suspect, base (`str`): what was compared. proves (`str`): key of `PROVES`.
        controls (`dict`): the same question where the answer must be no. adapter (`dict`): what a LoRA changed.
        source (`dict`): for `suspect` and `base` from a Hub, the repository and its commit; of the base also `declared_by`
            (where the suspect itself names it) and `matches_record` (its weights are those of the marked model).
        hashes (`dict`): SHA-256 of suspect (of the adapter file, where it is one), base, marked model and record, and the
            key's commitment. seed (`int`): of the trials.
        subpaths (`tuple[dict]`): of each plain trial the armed in-sites and each out-site's share of agreeing bits. It
            names sites that the key chose: masks stay secret, but hand a report only to who needs it.
        kind (`str`, *optional*): what a file or folder was recognised as.
        plan (`dict`): the plan that was fixed beforehand: its `name` (`thorough` or `fast`), its fields, the labels of its `looks` in
            order, and how the reading `ended`: `verified`, `futile` (nothing seen, stopped early) or `all looks taken`.
    """

    verdict: str
    suspect: str
    alpha: float
    base: str | None = None
    log10_p: float | None = None
    log10_p_floor: float | None = None
    bit_accuracy: float | None = None
    verification_rate: float | None = None
    verification_rate_ci: tuple[float, float] | None = None
    trials: int = 0
    denoiser_evals: int = 0
    sites: tuple[SiteTest, ...] = ()
    proves: str = "nothing"
    controls: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    reason: str | None = None
    looks: tuple[dict[str, Any], ...] = ()
    adapter: dict[str, Any] | None = None
    kind: str | None = None
    hashes: dict[str, str | None] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    subpaths: tuple[dict[str, Any], ...] = ()
    seed: int | None = None
    plan: dict[str, Any] = field(default_factory=dict)

    def with_control(self, name: str, control: "VerificationReport") -> "VerificationReport":
        """This report with the answer of one more unmarked model."""
        answer = {"verdict": control.verdict, "log10_p": control.log10_p}
        return replace(self, controls={**self.controls, name: answer})

    def with_warning(self, text: str) -> "VerificationReport":
        """This report with one more warning."""
        return replace(self, warnings=(*self.warnings, text))

    @property
    def verified(self) -> bool:
        """Whether the verdict is `verified`."""
        return self.verdict == "verified"

    @property
    def proves_in_words(self) -> str:
        """What follows from the verdict."""
        if self.verdict == "not_testable":
            return "Nothing: the question could not be put to this suspect."
        return PROVES[self.proves]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the fields of the public contract and some more."""
        return json.loads(json.dumps({**asdict(self), "proves_in_words": self.proves_in_words}))

    def to_markdown(self) -> str:
        """The report for people."""
        lines = [f"# {self.verdict}: {self.suspect}", "", self.proves_in_words, ""]
        if self.reason:
            lines += [f"Reason: {self.reason}", ""]
        if self.log10_p is not None:
            low, high = self.verification_rate_ci or (0.0, 1.0)
            lines += [
                f"- log10 p = {self.log10_p:.1f} (alpha {self.alpha:g}; these bits can reach {self.log10_p_floor:.1f})",
                f"- bit accuracy {self.bit_accuracy:.3f} (chance .5)",
                f"- verification rate {self.verification_rate:.2f} over {self.trials} trials, 95% CI {low:.2f}-{high:.2f}",
                f"- denoiser evaluations: {self.denoiser_evals}; base: {self.base or 'none'}",
                *_plan_line(self.plan, len(self.looks)),
                "",
                "| out-site | channels | hits | log10 p |",
                "|---|---|---|---|",
                *(f"| {s.name} | {s.channels} | {s.hits} | {s.log10_p:.1f} |" for s in self.sites),
                "",
            ]
        lines += [f"- {name}: {told}" for name, told in _sources(self.source)]
        lines += [f"- control `{name}`: {describe_control(fields)}" for name, fields in self.controls.items()]
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


def describe_control(fields: Any) -> str:
    """A control in one line, without its long lists."""
    if not isinstance(fields, dict):
        return str(fields)
    shown = {
        n: f"{v:.2f}" if isinstance(v, float) else v for n, v in fields.items() if not isinstance(v, list | tuple)
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _plan_line(plan: dict[str, Any], taken: int) -> list[str]:
    """The plan in one line; nothing for reports of older versions."""
    if not plan:
        return []
    ended = f"; ended: {plan['ended']}" if "ended" in plan else ""
    return [
        f"- plan: {plan['name']}, {taken} of {len(plan['looks'])} looks taken, in an order fixed beforehand{ended}"
    ]


def _sources(source: dict[str, Any]) -> list[tuple[str, str]]:
    """Each model's origin in words."""
    lines = []
    for name, told in source.items():
        words = [f"repository {told['repo']} at commit {told['commit']}"] if "repo" in told else []
        if told.get("declared_by"):
            words.append(f"self-declared by the suspect's {told['declared_by']}")
        if "matches_record" in told:
            words.append(f"weights are {'' if told['matches_record'] else 'not '}those of the record's marked model")
        if told.get("from_cache_alone"):
            words.append("read from the cache, for the Hub was away")
        lines.append((name, "; ".join(words)))
    return lines
