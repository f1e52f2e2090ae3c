"""The question of lineage: was the suspect made from a model that carries the key's directions? Answered without any forward.

`read_beside` asks it beside the reading of what runs; the two claims stand apart in the report. `report_alone` makes it the report's
own question: of an adapter without a base, which nobody can run here.

Source: our choice.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from ..errors import ConfigError, NotTestableError
from ..lineage.blank import blank_of
from ..lineage.reading import LOOKS, LineageReading, read_lineage
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from ..protocol.leaves import LeafKey
from .claims import LINEAGE
from .plan import ReadingPlan
from .reading import OWN_COPY
from .report import VerificationReport
from .suspect import Suspect, label_of, open_suspect


_COUNTED = ("alpha", "commitments", "leaves", "clean_twin", "reference", "healing")
"""Fields of a plan that count without a forward, or are set by `verify`."""


def read_beside(
    found: Suspect, key: WatermarkKey, record: WatermarkRecord, plan: ReadingPlan
) -> dict[str, Any] | None:
    """What lineage a suspect shows, as plain data, for the report on what runs.

    None where the mark has no carrier, of suspects that are no adapter with a file of its own, and for a leaf, which tells of no other
    label than its own.

    Args:
        found: as opened. key: as the record expands it. record: of the mark. plan: whose alpha and commitments count here too.
    Raises:
        SuspectError, UnsafeFileError: as `read_lineage`.
    """
    if record.lineage is None or isinstance(key, LeafKey) or found.adapter_file is None:
        return None
    reading = read_lineage(found.adapter_file, key, found.denoiser, alpha=plan.alpha, factor=plan.commitments)
    return _to_dict(reading)


def report_alone(found: Suspect, key: WatermarkKey, record: WatermarkRecord, plan: ReadingPlan) -> VerificationReport:
    """The report on an adapter whose file is all there is: which model was it trained on?

    Args:
        found: as opened without a base. key: as the record expands it. record: of the mark, which names the architecture.
        plan: whose alpha and commitments count; a warning names what else it sets.
    Returns:
        `VerificationReport`: without `dating`; not_testable where no carrier can be read, with the fix.
    Raises:
        RecordError: the record's architecture cannot be read. SuspectError, UnsafeFileError: as `read_lineage`.
    """
    reading = _read_file(found, key, record, plan)
    warnings = [*found.warnings, *reading.warnings, *_unused(plan)]
    if not record.belongs_to(key):
        warnings.append("the record commits to another key; the architecture that it names was used all the same.")
    if found.own_record and reading.verdict != "verified":
        warnings += OWN_COPY
    channels = sum(site.channels for site in reading.sites)
    return VerificationReport(
        verdict=reading.verdict,
        suspect=found.label,
        alpha=plan.alpha,
        log10_p=reading.log10_p,
        log10_p_floor=reading.log10_p_floor,
        bit_accuracy=sum(site.hits for site in reading.sites) / channels if channels else None,
        sites=reading.sites,
        proves=LINEAGE if reading.verdict == "verified" else "nothing",
        reason=reading.reason or None,
        warnings=tuple(warnings),
        looks=tuple({**look, "trials": 0} for look in reading.looks),
        plan=lineage_plan(plan) | ({} if reading.log10_p is None else {"ended": "all looks taken"}),
        kind=found.kind,
        source={name: dict(told) for name, told in found.source.items()},
        also_present=tuple(map(asdict, found.also_present)),
        hashes={
            "suspect": reading.sha256,
            "marked": record.marked_sha256,
            "record": record.sha256,
            "commitment": record.commitment if record.belongs_to(key) else key.commitment,
        },
        lineage=_to_dict(reading),
    )


def read_control(model: Any, key: WatermarkKey, record: WatermarkRecord, plan: ReadingPlan) -> VerificationReport:
    """An adapter asked by its file alone, whatever base it names; a whole model cannot answer, and is not_testable."""
    try:
        with open_suspect(model, record=record, alone=True) as found:
            return report_alone(found, key, record, plan)
    except NotTestableError as error:
        return VerificationReport("not_testable", label_of(model), plan.alpha, reason=str(error))


def refuse_offers(offers: Mapping[str, Any]) -> None:
    """Raises ConfigError where something was offered that only a reading with forwards takes."""
    for name, value in offers.items():
        if value is not None and value is not False:
            raise ConfigError(
                f"{name}= (--{name.replace('_', '-')}) belongs to a reading with forwards, and this adapter came without a base: "
                "leave it out, or pass the model that the adapter is used with as base= (--base)."
            )


def lineage_plan(plan: ReadingPlan) -> dict[str, Any]:
    """The plan of the question of lineage, as a report names it: both looks, always."""
    counted = {"alpha": plan.alpha, "commitments": plan.commitments, "leaves": 1}
    return {"name": LINEAGE, **counted, "looks": list(LOOKS)}


def _read_file(found: Suspect, key: WatermarkKey, record: WatermarkRecord, plan: ReadingPlan) -> LineageReading:
    if isinstance(key, LeafKey):
        return LineageReading(
            "not_testable",
            plan.alpha,
            reason="a leaf shows masks and patterns of its own sites, and no direction that adapters inherit: an adapter without a "
            "base is read with the whole key (--key), one with base= (or --base) by the leaf too.",
        )
    blank = blank_of(record)
    if blank is None or found.adapter_file is None:
        return LineageReading(
            "not_testable",
            plan.alpha,
            reason="no base was given, and the record's mark has no lineage carrier that an adapter's file could show by itself: pass "
            "the model it is used with as base= (or --base), or the record of a mark with a carrier as record= (or --record).",
        )
    return read_lineage(found.adapter_file, key, blank, alpha=plan.alpha, factor=plan.commitments)


def _to_dict(reading: LineageReading) -> dict[str, Any]:
    return {"kind": "adapter", **reading.to_dict()}


def _unused(plan: ReadingPlan) -> list[str]:
    """A warning that names what the plan sets for readings with forwards alone."""
    usual = ReadingPlan()
    set_here = [one.name for one in fields(plan) if getattr(plan, one.name) != getattr(usual, one.name)]
    names = [name for name in set_here if name not in _COUNTED]
    if not names:
        return []
    return [f"{', '.join(names)} of the plan took no part: an adapter's file is read without forwards."]
