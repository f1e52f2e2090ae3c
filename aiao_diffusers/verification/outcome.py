"""The outcome of one verification, as frozen data: what was compared, what was read, what follows."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

from ..stats.hits import SiteTest
from .claims import NO_LINEAGE, PROVES


@dataclass(frozen=True)
class VerificationOutcome:
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
        also_present: what else lies in the folder or repository and somebody would load: `path` (`weight_name=` takes it), `kind` and
            `why`; after `verify(..., all_candidates=True)` also its `verdict`, `log10_p`, `log10_p_holm` and `reason`.
        dating (`dict`): under which `assumption` p holds: the `scheme`, its `commitment`, whether that is `dated` (`status`), when and by
            whom, and the `beacon` that masks and patterns follow from (`verification.dating`).
        probes (`dict`, *optional*): the judge's own inputs that it was read with: how many (`inputs`), `pipeline`, `seed`,
            `prompts_sha256`, `sha256` of the file, and what p then `assumes`.
        lineage (`dict`, *optional*): where the mark has a lineage carrier, what an adapter's file alone says of the model that it was
            trained on, or a whole model's weights (`kind`) of the one that it descends from, with a verdict and a p of its own
            (`lineage.reading.LineageReading`). The verdict above is on what runs, adapter and base together; of an adapter without a
            base, and of a mark that is a carrier alone, it is this one (`asks_lineage`).
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
    also_present: tuple[dict[str, Any], ...] = ()
    dating: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, Any] | None = None
    lineage: dict[str, Any] | None = None

    def with_control(self, name: str, control: "VerificationOutcome") -> Self:
        """The same with the answer of one more unmarked model."""
        answer = {"verdict": control.verdict, "log10_p": control.log10_p}
        return replace(self, controls={**self.controls, name: answer})

    def with_warning(self, text: str) -> Self:
        """The same with one more warning."""
        return replace(self, warnings=(*self.warnings, text))

    @property
    def verified(self) -> bool:
        """Whether the verdict is `verified`."""
        return self.verdict == "verified"

    @property
    def asks_lineage(self) -> bool:
        """Whether the verdict is on lineage, read without a forward, and not on what runs."""
        return self.plan.get("name") in NO_LINEAGE

    @property
    def lineage_source(self) -> str:
        """What the lineage was read from, in words."""
        return "the weights alone" if (self.lineage or {}).get("kind") == "weights" else "the adapter's file alone"

    @property
    def proves_in_words(self) -> str:
        """What follows from the verdict."""
        if self.verdict == "not_testable":
            return "Nothing: the question could not be put to this suspect."
        if self.asks_lineage and not self.verified:
            return NO_LINEAGE[self.plan["name"]]
        return PROVES[self.proves]

    @property
    def probes_in_words(self) -> str:
        """With whose inputs it was read and what p supposes then; empty where the record's own were."""
        if self.probes is None:
            return ""
        told = self.probes
        prompts = told["prompts_sha256"]
        made = (
            f"no prompts, seed {told['seed']}" if prompts is None else f"prompts {prompts[:16]}, seed {told['seed']}"
        )
        return (
            f"Read with a judge's own probes: {told['inputs']} inputs captured from {told['pipeline']} ({made}; SHA-256 "
            f"{told['sha256'][:16]}), at amplitude 1, on the suspect's own sites, without twin and reference. p supposes that "
            f"{told['assumes']}."
        )

    @property
    def controls_in_words(self) -> dict[str, str]:
        """Each control in one line, without its long lists."""
        return {name: _describe(fields) for name, fields in self.controls.items()}

    @property
    def also_present_in_words(self) -> list[str]:
        """What lies beside the judged weights, a line each, with its verdict where it was read."""
        return [_describe_bystander(fields) for fields in self.also_present]

    @property
    def source_in_words(self) -> dict[str, str]:
        """The origin of suspect and base, as far as they came from a Hub."""
        return {name: _origin(told) for name, told in self.source.items()}


def _describe(fields: Any) -> str:
    if not isinstance(fields, dict):
        return str(fields)
    shown = {
        n: f"{v:.2f}" if isinstance(v, float) else v for n, v in fields.items() if not isinstance(v, list | tuple)
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _describe_bystander(fields: dict[str, Any]) -> str:
    line = f"{fields['path']} ({fields['kind']}): {fields['why']}"
    if "verdict" not in fields:
        return line
    if fields.get("log10_p") is None:
        return f"{line}; {fields['verdict']} ({fields.get('reason')})"
    return f"{line}; {fields['verdict']} (log10 p {fields['log10_p']:.1f}, Holm {fields['log10_p_holm']:.1f})"


def _origin(told: dict[str, Any]) -> str:
    words = [f"repository {told['repo']} at commit {told['commit']}"] if "repo" in told else []
    if told.get("declared_by"):
        words.append(f"self-declared by the suspect's {told['declared_by']}")
    if "matches_record" in told:
        words.append(f"weights are {'' if told['matches_record'] else 'not '}those of the record's marked model")
    if told.get("from_cache_alone"):
        words.append("read from the cache, for the Hub was away")
    return "; ".join(words)
