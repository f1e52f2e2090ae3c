"""Verify a suspect: Monte Carlo trials over sub-paths, exact statistics, a report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import ConfigError, KeyMismatchError, NotTestableError
from .key import WatermarkKey
from .probe import Wired, probe
from .record import WatermarkRecord, weights_sha256
from .report import VerificationReport
from .safefile import check_finite
from .sites import Site, choose, trace_on, unwrap
from .statistics import (
    SequentialTest,
    SiteTest,
    clopper_pearson,
    combined_log10_p,
    floor_log10_p,
    hits,
    site_log10_p,
)
from .subpath import SubPath, draw
from .suspect import Opened, label_of, opened, require_record


AMPLITUDES = (1.0, 2.0, 4.0)  # the looks of escalated reading: an attacker who suppresses a mark rarely erases it


def verify(
    suspect: Any,
    key: WatermarkKey,
    base: Any = None,
    record: Any = None,
    clean_base: Any = None,
    weight_name: str | None = None,
    revision: str | None = None,
    alpha: float = 1e-6,
    trials: int = 8,
    seed: int = 0,
    *,
    early_stop: bool = True,
) -> VerificationReport:
    """Does `suspect` descend from a model marked with `key`?

    Args:
        suspect, base: a denoiser, a pipeline, a folder, a `.safetensors` file or a Hub repository id; a LoRA needs `base`.
        record: a `WatermarkRecord` or the folder that holds it; default: the one beside suspect or base.
        clean_base: a model known to be unmarked; the same question is asked of it, as a control.
        alpha (`float`, defaults to 1e-6): significance. trials (`int`, defaults to 8): Monte Carlo trials a look, at most.
        seed (`int`): of sub-paths, timesteps, probe inputs and noise.
        early_stop (`bool`, defaults to True): stop at the first look that verifies; False runs all plain trials, which
            the verification rate wants.
    Returns:
        `VerificationReport`.
    Raises:
        ConfigError: alpha or trials out of range. RecordError, SuspectError, UnsafeFileError, SiteError: misuse and broken
        files. KeyMismatchError: the folder passed as `record` commits to another key (a record found beside the
        suspect only warns, for it is evidence, not a choice).
    Source: DESIGN section 3. Looks come after 1, 2, 4, ... trials at amplitude x1, then x2, then x4; the k-th pays 2^k.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is a probability between 0 and 1, got {alpha}.")
    if trials < 1:
        raise ConfigError(f"trials must be at least 1, got {trials}.")
    try:
        with opened(suspect, base, weight_name=weight_name, revision=revision) as found:
            chosen = require_record(record, found.record)
            if isinstance(record, str | Path) and not chosen.belongs_to(key):
                raise KeyMismatchError(
                    f"the record '{record}' is of {chosen.owner!r} and commits to another key than {key.owner!r}'s: "
                    "pass the record that was published with this key."
                )
            report = _read(found, key, chosen, alpha=alpha, trials=trials, seed=seed, early_stop=early_stop)
    except NotTestableError as error:
        return VerificationReport("not_testable", label_of(suspect), alpha, reason=str(error))
    if clean_base is not None:
        control = verify(clean_base, key, record=chosen, alpha=alpha, trials=trials, seed=seed)
        answer = {"verdict": control.verdict, "log10_p": control.log10_p}
        report = replace(report, controls={**report.controls, "clean_base": answer})
    return report


@dataclass
class _Evidence:
    """Readings of one amplitude, summed over its trials; trials share masks, so d is averaged before the split."""

    key: WatermarkKey
    total: dict[str, np.ndarray] = field(default_factory=dict)
    alone: list[float] = field(default_factory=list)

    def add(self, readings: Sequence[Any]) -> None:
        single = {reading.site: reading.d.double().numpy() for reading in readings}
        for name, d in single.items():
            self.total[name] = self.total.get(name, 0.0) + d
        self.alone.append(combined_log10_p([triple for _, triple in self.triples(single)]))

    def triples(self, response: dict[str, np.ndarray]) -> list[tuple[str, tuple[int, int, int]]]:
        return [(name, triple(d, self.key.response_pattern(name, len(d)))) for name, d in response.items()]

    def tests(self) -> tuple[SiteTest, ...]:
        return tuple(SiteTest(n, c, h, site_log10_p(c, plus, h)) for n, (c, plus, h) in self.triples(self.total))


def triple(d: np.ndarray, s: np.ndarray) -> tuple[int, int, int]:
    """`(channels, plus, hits)` of one out-site, as `statistics` takes it."""
    return len(s), int((s > 0).sum()), hits(d, s)


def _read(
    found: Opened,
    key: WatermarkKey,
    record: WatermarkRecord,
    *,
    alpha: float,
    trials: int,
    seed: int,
    early_stop: bool,
) -> VerificationReport:
    denoiser = unwrap(found.denoiser)
    record.check_fits(denoiser)
    check_finite(dict(denoiser.named_parameters()), "the suspect's weights")
    ins, outs = key_sites(denoiser, key, record)
    warnings = list(found.warnings)
    if not record.belongs_to(key):
        warnings.append("the record commits to another key; its probe bank and amplitudes were used all the same.")
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    training = denoiser.training
    denoiser.eval()
    sequence, best, plain, evaluations = SequentialTest(alpha=alpha), None, None, 0
    try:
        with probe(denoiser, [site.name for site in (*ins, *outs)]) as wired:
            for amplitude in AMPLITUDES:
                evidence = _Evidence(key)
                plain = plain or evidence
                for trial in range(1, trials + 1):
                    evidence.add(_trial(wired, key, record, draw(ins, outs, random), amplitude, generator))
                    evaluations += 2
                    if trial & (trial - 1) and trial != trials:
                        continue
                    log10_p = combined_log10_p([t for _, t in evidence.triples(evidence.total)])
                    sequence = sequence.look(f"amplitude x{amplitude:g}", trials=trial, log10_p=log10_p)
                    if best is None or sequence.looks[-1].log10_p_adjusted <= sequence.log10_p:
                        best = (dict(evidence.total), evidence.tests())
                    if early_stop and sequence.verdict == "verified":
                        break
                if sequence.verdict == "verified":
                    break
    finally:
        denoiser.train(training)
    assert best is not None and plain is not None
    response, tests = best
    passed = sum(p <= math.log10(alpha) for p in plain.alone)
    return VerificationReport(
        verdict=sequence.verdict,
        suspect=found.label,
        alpha=alpha,
        base=found.base,
        log10_p=sequence.log10_p,
        log10_p_floor=floor_log10_p([(t.channels, t.channels // 2, t.channels) for t in tests]),
        bit_accuracy=sum(t.hits for t in tests) / sum(t.channels for t in tests),
        verification_rate=passed / len(plain.alone),
        verification_rate_ci=clopper_pearson(passed, len(plain.alone)),
        trials=len(plain.alone),
        denoiser_evals=evaluations,
        sites=tests,
        proves=found.proves if sequence.verdict == "verified" else "nothing",
        controls={"wrong_response": wrong_responses(response, key)},
        warnings=tuple(warnings),
        looks=tuple(
            {"label": k.label, "trials": k.trials, "log10_p": k.log10_p, "log10_p_adjusted": k.log10_p_adjusted}
            for k in sequence.looks
        ),
        adapter=found.adapter,
        kind=found.kind,
        hashes={"suspect": weights_sha256(denoiser), "marked": record.marked_sha256},
    )


def key_sites(
    denoiser: nn.Module, key: WatermarkKey, record: WatermarkRecord
) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """The in-sites and out-sites of `key` on this denoiser; NotTestableError when it has another number of sites."""
    try:
        sites = trace_on(denoiser, record.bank)
    except RuntimeError as error:
        raise NotTestableError(f"the suspect does not take the record's probe inputs: {error}") from error
    if len(sites) != record.sites:
        raise NotTestableError(f"the suspect has {len(sites)} attention sites, the record names {record.sites}.")
    return choose(sites, key, record.in_sites, record.out_sites)


def _trial(
    wired: Wired,
    key: WatermarkKey,
    record: WatermarkRecord,
    subpath: SubPath,
    amplitude: float,
    generator: torch.Generator,
) -> list[Any]:
    row = record.bank.take(torch.randint(len(record.bank), (1,), generator=generator))
    noise = torch.randn(row.latents.shape, generator=generator)
    # The ends of the schedule are left out: pure noise and clean latents tell least.
    low, high = round(0.1 * record.timesteps), round(0.9 * record.timesteps)
    t = torch.randint(low, high, (1,), generator=generator)
    weight = next(p for p in wired.denoiser.parameters() if p.is_floating_point())
    sample = record.noised(row.latents, noise, t).to(weight.device, weight.dtype)
    keywords = row.keywords(weight.device, weight.dtype)
    return wired.read(key, subpath, record.kappa * amplitude, sample, t.to(weight.device), keywords)


def wrong_responses(response: dict[str, np.ndarray], key: WatermarkKey, count: int = 100) -> dict[str, Any]:
    """The same readings against `count` wrong response patterns: their p-values must look uniform.

    Returns:
        `{"n", "median_log10_p", "smallest_log10_p"}`; about -.3 and -log10(n) are expected.
    """
    values = []
    for number in range(count):
        wrong = key.child(f"control/{number}")
        values.append(combined_log10_p([triple(d, wrong.response_pattern(n, len(d))) for n, d in response.items()]))
    return {"n": count, "median_log10_p": float(np.median(values)), "smallest_log10_p": float(min(values))}
