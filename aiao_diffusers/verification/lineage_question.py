"""The question of lineage: was the suspect made from a model that carries the key's directions? Answered without any forward.

`read_beside` asks it beside the reading of what runs; the two claims stand apart in the report. `report_alone` makes it the report's
own question: of an adapter without a base, which nobody can run here, and of a mark that is a lineage carrier alone.

Source: our choice.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from ..denoiser.hashes import weights_sha256
from ..denoiser.setup import running_values
from ..denoiser.sites import unwrap
from ..errors import ConfigError, NotTestableError
from ..lineage.blank import blank_of
from ..lineage.reading import LOOKS, LineageReading, read_lineage
from ..lineage.weights import LOOK, read_lineage_in_weights
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from ..protocol.leaves import LeafKey
from .claims import LINEAGE, WEIGHTS
from .plan import ReadingPlan
from .reading import OWN_COPY
from .report import VerificationReport
from .suspect import Suspect, label_of, open_suspect


_COUNTED = ("alpha", "commitments", "leaves", "clean_twin", "reference", "healing")
"""Fields of a plan that count without a forward, or are set by `verify`."""


def is_alone(found: Suspect, record: WatermarkRecord) -> bool:
    """Whether lineage is all that can be asked: of an adapter without a base, or of a mark that is a carrier alone."""
    return found.alone or (record.lineage is not None and record.lineage["only"])


def read_beside(
    found: Suspect, key: WatermarkKey, record: WatermarkRecord, plan: ReadingPlan
) -> dict[str, Any] | None:
    """What lineage a suspect shows, as plain data, for the report on what runs: an adapter's file, or a whole model's weights.

    None where the mark has no carrier, of an adapter without a file of its own, and for a leaf, which tells of no other label than
    its own. The clean twin takes no part, so nothing but the record is the claimant's; nor does an adapter's base, which could leave
    out the sites that disagree: they are those of the architecture that the record names, and that a commitment covers.

    Args:
        found: as opened. key: as the record expands it. record: of the mark. plan: whose alpha and commitments count here too.
    Raises:
        RecordError: its architecture cannot be read. SuspectError, UnsafeFileError: as `read_lineage`.
    """
    if record.lineage is None or isinstance(key, LeafKey):
        return None
    terms: dict[str, Any] = {"alpha": plan.alpha, "factor": plan.commitments}
    if found.adapter_file is not None and (blank := blank_of(record)) is not None:
        return read_lineage(found.adapter_file, key, blank, **terms).to_dict()
    return None if found.adapter is not None else read_lineage_in_weights(found.denoiser, key, **terms).to_dict()


def report_alone(
    found: Suspect,
    key: WatermarkKey,
    record: WatermarkRecord,
    plan: ReadingPlan,
) -> VerificationReport:
    """The report on lineage alone: on which model was this adapter trained, or from which does this model descend?

    Args:
        found: as opened. key: as the record expands it. record: of the mark, which names the architecture.
        plan: whose alpha and commitments count; a warning names what else it sets.
    Returns:
        `VerificationReport`: without `dating`; not_testable where no carrier can be read, with the fix.
    Raises:
        RecordError: the record is of another class, or its architecture cannot be read. SuspectError, UnsafeFileError: as
            `read_lineage`.
    """
    whole = found.adapter_file is None
    reading = _answer(found, key, record, plan)
    warnings = [*found.warnings, *reading.warnings, *_unused(plan)]
    if not whole and not found.alone:
        warnings.append(
            "the mark is a lineage carrier alone: the adapter was read by its file, and the base took no part."
        )
    if not record.belongs_to(key):
        warnings.append("the record commits to another key; the architecture that it names was used all the same.")
    if found.own_record and reading.verdict != "verified":
        warnings += OWN_COPY
    name = WEIGHTS if whole else LINEAGE
    sha256 = weights_sha256(running_values(unwrap(found.denoiser))) if whole else reading.sha256
    channels = sum(site.channels for site in reading.sites)
    return VerificationReport(
        verdict=reading.verdict,
        suspect=found.label,
        alpha=plan.alpha,
        log10_p=reading.log10_p,
        log10_p_floor=reading.log10_p_floor,
        bit_accuracy=sum(site.hits for site in reading.sites) / channels if channels else None,
        sites=reading.sites,
        proves=name if reading.verdict == "verified" else "nothing",
        reason=reading.reason or None,
        warnings=tuple(warnings),
        looks=tuple({**look, "trials": 0} for look in reading.looks),
        plan=lineage_plan(plan, name) | ({} if reading.log10_p is None else {"ended": "all looks taken"}),
        kind=found.kind,
        source={origin: dict(told) for origin, told in found.source.items() if whole or origin == "suspect"},
        also_present=tuple(map(asdict, found.also_present)),
        hashes={
            "suspect": sha256,
            "marked": record.marked_sha256,
            "record": record.sha256,
            "commitment": record.commitment if record.belongs_to(key) else key.commitment,
        },
        lineage=reading.to_dict(),
    )


def read_control(
    model: Any,
    key: WatermarkKey,
    record: WatermarkRecord,
    plan: ReadingPlan,
    *,
    of_files: bool,
) -> VerificationReport:
    """A control's answer to `report_alone`; not_testable where it is no adapter and adapters are asked (`of_files`), or is one and
    models are. An adapter is asked by its file alone, whatever base it names.
    """
    try:
        with open_suspect(model, record=record, alone=of_files) as found:
            if not of_files and found.adapter_file is not None:
                raise NotTestableError(f"'{found.label}' is an adapter: a whole model's question needs a whole model.")
            return report_alone(found, key, record, plan)
    except NotTestableError as error:
        return VerificationReport("not_testable", label_of(model), plan.alpha, reason=str(error))


def refuse_offers(found: Suspect, offers: Mapping[str, Any]) -> None:
    """Raises ConfigError where something was offered that a reading without forwards does not take."""
    for name, value in offers.items():
        if value is None or value is False:
            continue
        why = (
            "this adapter came without a base: leave it out, or pass the model that the adapter is used with as base= (--base)."
            if found.alone
            else "the record's mark is a lineage carrier alone, which is read without any: leave it out."
        )
        raise ConfigError(f"{name}= (--{name.replace('_', '-')}) belongs to a reading with forwards, and {why}")


def lineage_plan(plan: ReadingPlan, name: str = LINEAGE) -> dict[str, Any]:
    """The plan of the question of lineage, as a report names it: its looks, always all of them."""
    counted = {"alpha": plan.alpha, "commitments": plan.commitments, "leaves": 1}
    return {"name": name, **counted, "looks": [LOOK] if name == WEIGHTS else list(LOOKS)}


def _answer(found: Suspect, key: WatermarkKey, record: WatermarkRecord, plan: ReadingPlan) -> LineageReading:
    if isinstance(key, LeafKey):
        return LineageReading(
            "not_testable",
            plan.alpha,
            reason="a leaf shows masks and patterns of its own sites, and no direction of lineage: read with the whole key (--key), or, "
            "where the mark has sub-paths too, an adapter with base= (or --base).",
        )
    terms: dict[str, Any] = {"alpha": plan.alpha, "factor": plan.commitments}
    if found.adapter_file is None:
        record.check_fits(unwrap(found.denoiser))
        return read_lineage_in_weights(found.denoiser, key, **terms)
    blank = blank_of(record)
    if blank is None:
        return LineageReading(
            "not_testable",
            plan.alpha,
            reason="no base was given, and the record's mark has no lineage carrier that an adapter's file could show by itself: pass "
            "the model it is used with as base= (or --base), or the record of a mark with a carrier as record= (or --record).",
        )
    return read_lineage(found.adapter_file, key, blank, **terms)


def _unused(plan: ReadingPlan) -> list[str]:
    """A warning that names what the plan sets for readings with forwards alone."""
    usual = ReadingPlan()
    set_here = [one.name for one in fields(plan) if getattr(plan, one.name) != getattr(usual, one.name)]
    names = [name for name in set_here if name not in _COUNTED]
    return [f"{', '.join(names)} of the plan took no part: lineage is read without forwards."] if names else []
