"""Verify a suspect: Monte Carlo trials over sub-paths, exact statistics, a report."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..denoiser.encode import prepare
from ..denoiser.hashes import weights_sha256
from ..denoiser.inputs import LatentData, fitting
from ..denoiser.setup import Values, denoiser_of, without_ip_adapter
from ..denoiser.sites import unwrap
from ..errors import ConfigError, KeyMismatchError, NotTestableError, RecordError, SiteError
from ..files.safetensors_header import check_finite
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from ..stats.hits import floor_log10_p
from ..stats.multiple import clopper_pearson
from .alignment import align
from .evidence import AMPLITUDES, Looks, key_sites, wrong_responses
from .healing import BATCH, STEPS, heal_copy
from .reference import Reference, clean_twin, reference_for
from .report import VerificationReport
from .suspect import Suspect, label_of, open_suspect, require_record


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
    amplitudes: Sequence[float] = AMPLITUDES,
    whiten: bool = True,
    twin: Any = None,
    reference: Any = None,
    healing: Any = None,
) -> VerificationReport:
    """Does `suspect` descend from a model marked with `key`?

    Args:
        suspect, base: a denoiser, a pipeline, a folder, a `.safetensors` file or a Hub repository id; a LoRA needs `base`.
        record: a `WatermarkRecord` or the folder that holds it; default: the one beside `base`, else the suspect's
            own copy, which its publisher could have altered.
        clean_base: a model known to be unmarked; the same question is asked of it, as a control.
        alpha (`float`, defaults to 1e-6): significance. trials (`int`, defaults to 8): Monte Carlo trials a look, at most.
        seed (`int`): of sub-paths, timesteps, probe inputs and noise. It and the other options are to be fixed beforehand: of n
            runs that differ in them the smallest p counts n times itself.
        early_stop (`bool`, defaults to True): stop at the first look that verifies; False runs all plain trials, which
            the verification rate wants, and all looks of that amplitude and beyond the twin, of which the deepest is reported.
        amplitudes (`Sequence[float]`, defaults to 1, 2, 4): trigger amplitudes of the looks, in units of the record's;
            fixed beforehand, for a list chosen by an earlier outcome makes p too small.
        whiten (`bool`, defaults to True): look at whitened responses too (`whiten`), only where the plain looks before do not
            verify; False saves 80 of the 128 forwards that an unmarked model costs (272 with masks for pairs, seven out-sites).
        twin: the clean twin (a denoiser, a pipeline, a folder, a repository id): looks at what the suspect answers beyond it,
            which bring merges with the twin back. Costs `4 * trials` forwards, only where the looks before did not verify
            (with masks for pairs `2 * (1 + out-sites) * trials`).
        reference: clean activations for reading through function-preserving disguises, see `align`: the file that
            embedding wrote, or the clean twin (a denoiser, a pipeline, a folder, a repository id). Costs 32 forwards and
            the looks, only where the plain looks did not verify.
        healing: opt-in; a short key-blind fine-tune of a copy of the suspect before a last set of looks. True trains on
            the record's probe bank, else training latents (`LatentData` or its file). Costs 150 steps of batch 8.
    Returns:
        `VerificationReport`.
    Raises:
        ConfigError: alpha or trials out of range. RecordError, SuspectError, UnsafeFileError, SiteError: misuse and broken
        files. HubError: a repository is missing, private, gated or away. KeyMismatchError: the folder passed as `record`
        commits to another key (a record found beside the suspect only warns, for it is evidence, not a choice).
        RecordError: the record names another reference or twin, or no twin. ConfigError: the twin is no model, or carries the
        suspect's adapter.
    Source: our choice. The looks and their order are in `looks`; the k-th pays 2^k.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is a probability between 0 and 1, got {alpha}.")
    if trials < 1:
        raise ConfigError(f"trials must be at least 1, got {trials}.")
    if not amplitudes or not all(0 < amplitude < math.inf for amplitude in amplitudes):
        raise ConfigError(f"amplitudes are positive numbers, at least one, got {list(amplitudes)}.")
    given = None if record is None else require_record(record, None)
    try:
        with open_suspect(suspect, base, weight_name=weight_name, revision=revision, record=given) as found:
            chosen = require_record(given, found.record)
            if isinstance(record, str | Path) and not chosen.belongs_to(key):
                raise KeyMismatchError(
                    f"the record '{record}' is of {chosen.owner!r} and commits to another key than {key.owner!r}'s: "
                    "pass the record that was published with this key."
                )
            means = _means(chosen, reference, healing)
            with _twin(chosen, twin, found) as clean, without_ip_adapter(unwrap(found.denoiser)) as notes:
                means = replace(means, twin=clean)
                found = replace(found, warnings=(*found.warnings, *notes))
                report = _read(
                    found,
                    key,
                    chosen,
                    means,
                    alpha=alpha,
                    trials=trials,
                    seed=seed,
                    early_stop=early_stop,
                    amplitudes=amplitudes,
                    whiten=whiten,
                )
    except NotTestableError as error:
        return VerificationReport("not_testable", label_of(suspect), alpha, reason=str(error))
    if clean_base is not None:
        # Through the same reference: one made with the key in mind gives itself away here.
        control = verify(
            clean_base,
            key,
            record=chosen,
            alpha=alpha,
            trials=trials,
            seed=seed,
            amplitudes=amplitudes,
            whiten=whiten,
            twin=twin,
            reference=reference,
            healing=healing,
        )
        answer = {"verdict": control.verdict, "log10_p": control.log10_p}
        report = replace(report, controls={**report.controls, "clean_base": answer})
        if twin is not None and control.hashes.get("suspect") == chosen.teacher_sha256:
            note = "clean_base is the clean twin, which answers nothing beyond itself: another unmarked model controls that look."
            report = replace(report, warnings=(*report.warnings, note))
    return report


@dataclass(frozen=True)
class _Means:
    """What the verifier offers for looking further than plainly."""

    reference: Reference | None
    healing: LatentData | None
    warnings: tuple[str, ...] = ()
    twin: nn.Module | None = None


def _twin(record: WatermarkRecord, source: Any, suspect: Suspect) -> AbstractContextManager[nn.Module | None]:
    if source is None:
        return nullcontext()
    if isinstance(source, bool):
        raise ConfigError(f"twin is the clean model itself or where it lies, got {source}.")
    if record.teacher_sha256 is None:
        # A model made with the response patterns in mind could push any suspect towards them.
        raise RecordError(
            "the record names no clean twin, so none can be told from one made with the key: leave twin out."
        )
    module = denoiser_of(source)
    if module is not None and unwrap(module) is unwrap(suspect.denoiser) and suspect.adapter is not None:
        raise ConfigError("twin is the model that carries the suspect's adapter here: load the clean twin anew.")
    return clean_twin(record, source)


def _means(record: WatermarkRecord, reference: Any, healing: Any) -> _Means:
    # Before any look: a broken offer is misuse, whatever the suspect.
    found, warnings = (None, ()) if reference is None else reference_for(record, reference)
    if healing is None or healing is False:
        return _Means(found, None, warnings)
    return _Means(found, record.bank if healing is True else prepare(None, healing), warnings)


def _read(
    found: Suspect,
    key: WatermarkKey,
    record: WatermarkRecord,
    means: _Means,
    *,
    alpha: float,
    trials: int,
    seed: int,
    early_stop: bool,
    amplitudes: Sequence[float],
    whiten: bool,
) -> VerificationReport:
    denoiser = unwrap(found.denoiser)
    record.check_fits(denoiser)
    check_finite(Values(denoiser), "the suspect's weights")
    ins, outs = key_sites(denoiser, key, record)
    looks = Looks(key, record, ins, outs, alpha, trials, seed, amplitudes, whiten)
    looks.read_amplitudes(denoiser, gradual=True, early_stop=early_stop, which=slice(1))
    further = _beyond(looks, denoiser, means.twin, early_stop=early_stop)
    if not looks.verified:
        looks.read_amplitudes(denoiser, gradual=True, early_stop=early_stop, which=slice(1, None))
    further += _further(looks, denoiser, means)
    warnings = [*found.warnings, *means.warnings, *further, *looks.missed]
    if len(ins) < record.in_sites or len(outs) < record.out_sites:
        warnings.append(
            f"the suspect has {len(ins)} of the key's {record.in_sites} in-sites and {len(outs)} of its "
            f"{record.out_sites} out-sites: read on those."
        )
    if not record.belongs_to(key):
        warnings.append("the record commits to another key; its probe bank and amplitudes were used all the same.")
    if found.own_record and not looks.verified:
        warnings.append(
            "read with the suspect's own copy of the record, which its publisher could have altered: pass record= (or --record)."
        )
    source = {name: dict(told) for name, told in found.source.items()}
    base_sha256 = found.hashes.get("base")
    if base_sha256 is not None and record.marked_sha256 is not None:
        matches = base_sha256 == record.marked_sha256
        source.setdefault("base", {})["matches_record"] = matches
        if not matches:
            warnings.append("the base's weights are not those of the marked model in the record (another SHA-256).")
    tests, plain = looks.tests, looks.plain
    if looks.by_ranks:
        warnings.append(
            "log10_p is by rank scores; hits, bit accuracy and the sites' own p-values are of the same readings."
        )
    passed = sum(p <= math.log10(alpha) for p in plain.trial_log10_p)
    return VerificationReport(
        verdict=looks.sequence.verdict,
        suspect=found.label,
        alpha=alpha,
        base=found.base,
        log10_p=looks.sequence.log10_p,
        log10_p_floor=floor_log10_p([(t.channels, t.channels // 2, t.channels) for t in tests]),
        bit_accuracy=sum(t.hits for t in tests) / sum(t.channels for t in tests),
        verification_rate=passed / len(plain.trial_log10_p),
        verification_rate_ci=clopper_pearson(passed, len(plain.trial_log10_p)),
        trials=len(plain.trial_log10_p),
        denoiser_evals=looks.evaluations,
        sites=tests,
        proves=found.proves if looks.verified else "nothing",
        controls={"wrong_response": wrong_responses(looks.response, key, ranks=looks.by_ranks)},
        warnings=tuple(warnings),
        looks=looks.to_dicts(),
        adapter=found.adapter,
        kind=found.kind,
        source=source,
        subpaths=tuple(plain.trial_bits),
        seed=seed,
        hashes={
            # Of an adapter its file was hashed already.
            **(found.hashes or {"suspect": weights_sha256(denoiser)}),
            "marked": record.marked_sha256,
            "record": record.sha256,
            "commitment": key.commitment,
        },
    )


def _beyond(looks: Looks, denoiser: nn.Module, twin: nn.Module | None, *, early_stop: bool) -> list[str]:
    """The looks beyond the twin; returns why they could not be taken, if so."""
    if twin is None or (looks.verified and early_stop):
        return []
    try:
        looks.read_beyond_twin(denoiser, twin, early_stop=early_stop)
    except (NotTestableError, SiteError) as error:
        return [f"the look beyond the twin is not available: {error}"]
    return []


def _further(looks: Looks, denoiser: nn.Module, means: _Means) -> list[str]:
    """The looks after the plain ones, until one verifies; returns what could not be done and why."""
    notes = _aligned(looks, denoiser, means.reference, "aligned")
    if looks.verified or means.healing is None:
        return notes
    try:
        copy = heal_copy(
            denoiser, fitting(means.healing, denoiser), looks.record.scheduler, steps=STEPS, seed=looks.seed
        )
    except NotTestableError as error:
        return [*notes, f"the healing looks are not available: {error}"]
    looks.evaluations += STEPS * BATCH
    looks.read_amplitudes(copy, "healed")
    if means.reference is not None:
        _aligned(looks, copy, means.reference, "healed, aligned")
    return notes


def _aligned(looks: Looks, denoiser: nn.Module, reference: Reference | None, label: str) -> list[str]:
    if looks.verified:
        return []
    if reference is None:
        return ["the alignment looks are not available: pass reference= (the file from embedding, or the clean twin)."]
    try:
        alignment = align(reference, denoiser, looks.ins, looks.outs)
    except NotTestableError as error:
        return [f"the alignment looks are not available: {error}"]
    looks.evaluations += len(reference.inputs)
    looks.read_amplitudes(denoiser, label, through=alignment, note=alignment.summary())
    return []
