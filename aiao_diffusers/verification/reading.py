"""Read an open suspect by a plan, and put what was seen into a report."""

import math
from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any

from ..denoiser.hashes import weights_sha256
from ..denoiser.probes import Probes
from ..denoiser.setup import Values, running_values
from ..denoiser.sites import attention_modules
from ..files.safetensors_header import check_finite
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from ..protocol.leaves import LeafKey
from ..stats.hits import floor_log10_p
from ..stats.multiple import clopper_pearson
from .evidence import EvidenceReader, key_sites
from .judge_probes import canonical_record, describe
from .own_schedule import with_own_schedule
from .plan import ReadingPlan
from .plan_run import Callback, Offers, PlanRun
from .report import VerificationReport
from .suspect import Suspect
from .wrong_patterns import wrong_responses


OWN_COPY = (
    "read with the suspect's own copy of the record, which its publisher could have altered: pass record= (or --record).",
)


def read_suspect(
    found: Suspect,
    key: WatermarkKey,
    record: WatermarkRecord,
    offers: Offers,
    plan: ReadingPlan,
    callback: Callback | None,
) -> VerificationReport:
    """The report on a suspect that lies open.

    Args:
        found (`Suspect`): its plain denoiser, ready for the inputs that it is read with.
        key (`WatermarkKey`): as the record expands it. record (`WatermarkRecord`): of the mark.
        offers (`Offers`): what the verifier has beside the suspect. plan (`ReadingPlan`): the looks; what is offered is set here.
        callback (*optional*): called after each look with the number of looks taken and planned.
    Returns:
        `VerificationReport`: without `dating` and `lineage`.
    Raises:
        NotTestableError: values that are not finite, too few of the key's sites, or inputs that the suspect does not take.
        RecordError: as `key_sites` and `EvidenceReader.read_trial`.
    Source: our choice.
    """
    denoiser = found.denoiser
    check_finite(Values(denoiser), "the suspect's weights")
    as_read, notes = _as_read(found, record, offers.probes)
    ins, outs = key_sites(denoiser, key, as_read)
    plan = replace(
        plan,
        clean_twin=offers.clean_twin is not None,
        reference=offers.reference is not None,
        healing=offers.healing is not None,
    )
    reader = EvidenceReader(key, as_read, ins, outs, plan.seed)
    reader.evaluations += offers.probes is not None  # the traced forward
    run = PlanRun(plan, reader, denoiser, offers, callback).run()
    source, base_warnings = _sources(found, record)
    warnings = [*found.warnings, *offers.warnings, *notes, *_reading_warnings(run, found), *base_warnings]
    tests, plain = run.tests, run.plain
    passed = sum(p <= math.log10(plan.alpha) for p in plain.trial_log10_p)
    return VerificationReport(
        verdict=run.sequence.verdict,
        suspect=found.label,
        alpha=plan.alpha,
        base=found.base,
        log10_p=run.sequence.log10_p,
        log10_p_floor=floor_log10_p([(t.channels, t.channels // 2, t.channels) for t in tests]),
        bit_accuracy=sum(t.hits for t in tests) / sum(t.channels for t in tests),
        verification_rate=passed / len(plain.trial_log10_p),
        verification_rate_ci=clopper_pearson(passed, len(plain.trial_log10_p)),
        trials=len(plain.trial_log10_p),
        denoiser_evals=reader.evaluations,
        sites=tests,
        proves=found.proves if run.verified else "nothing",
        controls={"wrong_response": wrong_responses(run.response, key, ranks=run.by_ranks)},
        warnings=tuple(warnings),
        looks=run.to_dicts(),
        plan={**plan.to_dict(), "ended": run.ending},
        probes=describe(offers.probes),
        adapter=found.adapter,
        kind=found.kind,
        source=source,
        also_present=tuple(map(asdict, found.also_present)),
        subpaths=tuple(plain.trial_bits),
        seed=plan.seed,
        hashes={
            # Of an adapter its file was hashed already.
            **(found.hashes or {"suspect": weights_sha256(running_values(denoiser))}),
            "marked": record.marked_sha256,
            "record": record.sha256,
            "commitment": record.commitment if record.belongs_to(key) else key.commitment,
        },
    )


def _as_read(
    found: Suspect, record: WatermarkRecord, probes: Probes | None
) -> tuple[WatermarkRecord, tuple[str, ...]]:
    """What takes the record's place in the reading of this suspect, and words for the report."""
    if probes is None:
        return with_own_schedule(record, found.schedule)
    return canonical_record(record, probes, found.denoiser)


def _reading_warnings(run: PlanRun, found: Suspect) -> list[str]:
    """What a reader of the figures must know of how they were read."""
    reader = run.reader
    key, record, ins, outs = reader.key, reader.record, reader.ins, reader.outs
    warnings = list(run.missed)
    if not run.verified and not run.futile and run.offers.reference is None and run.offers.probes is None:
        warnings.append(
            "the alignment looks are not available: pass reference= (the file from embedding, or the clean twin)."
        )
    if run.futile:
        warnings.append(
            f"{len(run.plain.trial_log10_p)} trials showed nothing and the plan ended the reading there; a mark that an attack "
            "has worn down may show in the other looks: read by the thorough plan."
        )
    if isinstance(key, LeafKey):
        warnings.append(
            f"read by one leaf of the key ({len(outs)} out-sites); p is multiplied by the {key.choices} leaves that could have been shown."
        )
    elif len(ins) < record.in_sites or len(outs) < record.out_sites:
        warnings.append(
            f"the suspect has {len(ins)} of the key's {record.in_sites} in-sites and {len(outs)} of its "
            f"{record.out_sites} out-sites: read on those."
        )
    warnings += _layout_warnings(record, attention_modules(run.denoiser))
    if (lost := len(run.response) - len(run.tests)) > 0:
        warnings.append(
            f"{lost} of {len(run.response)} out-sites answered alike in most of their channels: no evidence, left out."
        )
    if not record.belongs_to(key):
        warnings.append("the record commits to another key; its probe bank and amplitudes were used all the same.")
    if found.own_record and not run.verified:
        warnings += OWN_COPY
    if run.by_ranks:
        warnings.append(
            "log10_p is by rank scores; hits, bit accuracy and the sites' own p-values are of the same readings."
        )
    return warnings


def _layout_warnings(record: WatermarkRecord, here: Collection[str]) -> list[str]:
    """Sites that only one of record and suspect has: the list of sites decides which of them a key uses, and its writer chose it."""
    listed = set(here) if record.layout is None else {site.name for site in record.layout}
    strange, missing = len(set(here) - listed), len(listed - set(here))
    if not strange and not missing:
        return []
    return [
        f"of the {len(listed)} sites in the record's layout the suspect lacks {missing}, and it has {strange} that are not "
        "listed: p holds if the record was published before any ancestor of the suspect was."
    ]


def _sources(found: Suspect, record: WatermarkRecord) -> tuple[dict[str, Any], list[str]]:
    """Where suspect and base came from, and a warning where the base is not the marked model of the record."""
    source = {name: dict(told) for name, told in found.source.items()}
    base_sha256 = found.hashes.get("base")
    if base_sha256 is None or record.marked_sha256 is None:
        return source, []
    matches = base_sha256 == record.marked_sha256
    source.setdefault("base", {})["matches_record"] = matches
    return source, (
        [] if matches else ["the base's weights are not those of the marked model in the record (another SHA-256)."]
    )
