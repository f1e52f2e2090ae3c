"""The report of one verification: frozen data, as JSON, Markdown or a plot."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from .statistics import SiteTest


PROVES = {
    "descent": "The suspect's own weights carry the mark: it descends from the owner's model.",
    "carries": "Whoever runs this adapter on the given base still runs marked weights. It does not prove on which twin "
    "the adapter was trained.",
    "nothing": "Nothing: the mark was not found, which is no proof of independence.",
}


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
        kind (`str`, *optional*): what a file or folder was recognised as.
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

    @property
    def verified(self) -> bool:
        """Whether the verdict is `verified`."""
        return self.verdict == "verified"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the fields of the public contract and some more."""
        return json.loads(json.dumps({**asdict(self), "proves_in_words": PROVES[self.proves]}))

    def to_markdown(self) -> str:
        """The report for people."""
        lines = [f"# {self.verdict}: {self.suspect}", "", PROVES[self.proves], ""]
        if self.reason:
            lines += [f"Reason: {self.reason}", ""]
        if self.log10_p is not None:
            low, high = self.verification_rate_ci or (0.0, 1.0)
            lines += [
                f"- log10 p = {self.log10_p:.1f} (alpha {self.alpha:g}; these bits can reach {self.log10_p_floor:.1f})",
                f"- bit accuracy {self.bit_accuracy:.3f} (chance .5)",
                f"- verification rate {self.verification_rate:.2f} over {self.trials} trials, 95% CI {low:.2f}-{high:.2f}",
                f"- denoiser evaluations: {self.denoiser_evals}; base: {self.base or 'none'}",
                "",
                "| out-site | channels | hits | log10 p |",
                "|---|---|---|---|",
                *(f"| {s.name} | {s.channels} | {s.hits} | {s.log10_p:.1f} |" for s in self.sites),
                "",
            ]
        lines += [f"- control `{name}`: {value}" for name, value in self.controls.items()]
        lines += [f"- warning: {text}" for text in self.warnings]
        return "\n".join(lines) + "\n"

    def plot(self) -> Any:
        """A matplotlib figure: agreeing bits of each out-site against the null's mean and two standard deviations."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.subplots()
        places = range(len(self.sites))
        shares = [site.hits / site.channels for site in self.sites]
        spread = [2 / (site.channels - 1) ** 0.5 for site in self.sites]
        axes.bar(places, shares, color="tab:blue", label="read")
        axes.errorbar(places, [0.5] * len(shares), yerr=spread, fmt="_", color="black", label="null, 2 sd")
        axes.set_xticks(
            list(places), [site.name.split(".transformer")[0] for site in self.sites], rotation=30, ha="right"
        )
        axes.set_ylabel("bit accuracy")
        axes.set_title(f"{self.verdict}, log10 p = {self.log10_p:.1f}" if self.log10_p is not None else self.verdict)
        axes.legend()
        return figure
