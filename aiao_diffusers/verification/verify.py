"""Verify a suspect: open it, read it by a plan that was fixed beforehand, and report what follows."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import nn

from ..denoiser.encode import prepare
from ..denoiser.inputs import fitting
from ..denoiser.probes import Probes
from ..denoiser.setup import denoiser_of, for_reading, without_ip_adapter
from ..denoiser.sites import refuse_folded_frames, unwrap
from ..denoiser.widened import on_known_inputs
from ..deprecation import warn_renamed
from ..errors import AIAOError, ConfigError, KeyMismatchError, NotTestableError, RecordError, SeveralSuspectsError
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from ..mark.record_checks import check_conditioning
from ..protocol.leaves import Leaf, LeafKey, open_leaf
from .claims import LINEAGE
from .controls import ask_controls
from .dating import DatingTerms, date_record
from .judge_probes import describe, open_probes
from .lineage_question import is_alone, read_beside, read_control, refuse_offers, report_alone
from .other_candidates import read_others, warn_of_unread
from .plan import ReadingPlan
from .plan_run import Callback, Offers
from .reading import OWN_COPY, read_suspect
from .reference import open_clean_twin, reference_for
from .report import VerificationReport
from .suspect import Suspect, label_of, open_suspect, require_record


class VerifyOptions(TypedDict, total=False):
    """Options of `verify` that few callers need; see there."""

    callback: Callback | None
    weight_name: str | None
    revision: str | None
    reference: Any
    healing: Any
    probes: Any
    alpha: float
    trials: int
    seed: int
    early_stop: bool
    amplitudes: Sequence[float]
    whiten: bool
    commitments: int
    published: Any
    authorities: Any
    all_candidates: bool
    clean_base: Any
    twin: Any


_OFFERS = ("reference", "healing")
PLAN_OPTIONS = ("alpha", "trials", "seed", "early_stop", "amplitudes", "whiten", "commitments")


def verify(
    suspect: Any,
    key: WatermarkKey | Leaf,
    base: Any = None,
    record: Any = None,
    *,
    clean_twin: Any = None,
    plan: ReadingPlan | None = None,
    controls: Any = None,
    **options: Unpack[VerifyOptions],
) -> VerificationReport:
    """Does `suspect` descend from a model marked with `key`?

    Args:
        suspect: a denoiser, a pipeline, a folder, a `.safetensors` file or a Hub repository id.
        key (`WatermarkKey`): the owner's key; or a `Leaf` of it, which needs the record that it is under.
        base (*optional*): what an adapter sits on, of the same kinds. Of a LoRA without one the file alone is read, where the record's
            mark has a lineage carrier: was it trained on a model that carries the mark? Where the mark is a carrier alone, lineage is all
            that is asked of any suspect.
        record (*optional*): a `WatermarkRecord` or the folder that holds it; default: the one beside `base`, else the suspect's
            own copy, which its publisher could have altered.
        clean_twin (*optional*): the owner's unmarked original (a denoiser, a pipeline, a folder, a repository id). Two looks then
            read what the suspect answers beyond it, which brings merges with it back. Costs `4 * trials` evaluations, only where
            the looks before did not verify (with masks for pairs `2 * (1 + out-sites) * trials`).
        plan (`ReadingPlan`, *optional*): the looks and their order, fixed beforehand; default: `ReadingPlan.thorough()`.
        controls (*optional*): unmarked models that are asked the same question: one, a sequence, or a mapping from names. Their
            verdicts stand in the report and must be `not_verified`: one that verifies makes the suspect's `not_testable`.
        weight_name (`str`, *optional*): which file of a folder or repository is meant.
        revision (`str`, *optional*): of a Hub repository.
        all_candidates (`bool`, defaults to False): read all of `report.also_present` too, each at the cost of a suspect. The verdict
            stays that of the file that the stock loader runs; see `read_others` for those of the others.
        reference (*optional*): clean activations for reading through function-preserving disguises (`alignment`): the file that
            embedding wrote, or the clean twin. Costs 32 evaluations and the looks, only where the plain looks did not verify.
        healing (*optional*): a short key-blind fine-tune of a copy of the suspect before a last set of looks. True trains on the
            record's probe bank, else training latents (`LatentData` or its file). Costs 150 steps of batch 8.
        probes (*optional*): inputs of the judge's own (`capture_probes`, or the file of `aiao probe`), which take the place of the
            record's bank, schedule, layout and gains; without a clean twin and a reference. See `judge_probes`.
        callback (*optional*): called after each look at the suspect with the number of looks taken and planned.
        published (*optional*): the day on which the suspect was first public (a date, or its ISO text); a mark is called dated only if
            its commitment is older (`report.dating`).
        authorities (*optional*): PEM files of the roots of timestamp authorities that you trust; default: the roots that `certifi` lists.
        alpha, trials, seed, early_stop, amplitudes, whiten, commitments: fields of the plan, where no plan is given.
    Returns:
        `VerificationReport`: `report.plan` says by which plan it was read.
    Raises:
        ConfigError: an option out of range, or a field of the plan beside a plan; the clean twin is no model, or carries the
            suspect's adapter; a clean twin, reference, healing or probes where no forward is run.
        RecordError: no record, or it names another reference or twin, or no twin; or the suspect contradicts it: another class,
            sites that run in another order, a condition that its denoiser does not take.
        ProtocolError: a leaf that is not under the record's commitment; a timestamp or beacon in the record given that does not hold.
        SuspectError, UnsafeFileError, SiteError: misuse and broken files.
        HubError: a repository is missing, private, gated or away.
        KeyMismatchError: the folder passed as `record` commits to another key. A record found beside the suspect only warns, for
            it is evidence, not a choice.
    Source: our choice. The looks and their order are in `plan`; the k-th pays 2^k.
    """
    clean_twin, controls = _by_former_names(clean_twin, controls, options)
    chosen_plan = _plan(plan, options)
    terms = DatingTerms.read(options.get("published"), options.get("authorities"))
    probes = open_probes(options.get("probes"), clean_twin, options.get("reference"))
    given = None if record is None else require_record(record, None)
    where: dict[str, Any] = {"weight_name": options.get("weight_name"), "revision": options.get("revision")}
    read = ""
    told: tuple[str, ...] = ()  # stands in the report whatever comes of the reading
    try:
        with open_suspect(suspect, base, record=given, **where) as found:
            chosen, read = require_record(given, found.record), found.read
            told = OWN_COPY if found.own_record else ()
            asked = _expand(key, chosen, record)
            dating = date_record(
                chosen, terms, commitments=chosen_plan.commitments, trusted=record is not None or not found.own_record
            )
            if is_alone(found, chosen):
                refuse_offers(
                    found, {"clean_twin": clean_twin, "probes": probes, **{n: options.get(n) for n in _OFFERS}}
                )
                report = _tell(options.get("callback"), report_alone(found, asked, chosen, chosen_plan))
            else:
                chosen_plan = replace(chosen_plan, leaves=_choices(asked))
                report = _read(found, asked, chosen, chosen_plan, clean_twin, probes, options)
            report = replace(report, dating=dating)
    except (NotTestableError, SeveralSuspectsError) as error:
        if isinstance(error, SeveralSuspectsError) and not options.get("all_candidates"):
            raise
        report = replace(_refuse(label_of(suspect), chosen_plan, error, told), probes=describe(probes))
    shared = (*_OFFERS, "published", "authorities")
    offered: dict[str, Any] = {"probes": probes, **{name: options.get(name) for name in shared}}
    if options.get("all_candidates"):
        commit = report.source.get("suspect", {}).get("commit") or options.get("revision")
        ask = partial(verify, suspect, key, base, record, clean_twin=clean_twin, revision=commit, **offered)
        report = read_others(report, ask, chosen_plan)
    report = warn_of_unread(report, read)
    if report.verdict == "not_testable":
        return report
    if report.asks_lineage:
        of_files = report.plan["name"] == LINEAGE
        ask = partial(read_control, key=asked, record=chosen, plan=chosen_plan, of_files=of_files)
        return ask_controls(report, controls, ask, None)
    # Through the same twin and reference: one made with the key in mind gives itself away here.
    quick = {"plan": replace(chosen_plan, early_stop=True), "clean_twin": clean_twin, **offered}
    twin_sha256 = None if clean_twin is None else chosen.teacher_sha256
    return ask_controls(report, controls, lambda model: verify(model, key, record=chosen, **quick), twin_sha256)


def _read(
    found: Suspect,
    key: WatermarkKey,
    record: WatermarkRecord,
    plan: ReadingPlan,
    clean_twin: Any,
    probes: Probes | None,
    options: VerifyOptions,
) -> VerificationReport:
    """Read what runs, and beside it the lineage."""
    offers = _offers(record, options, probes)
    with _open_clean_twin(record, clean_twin, found) as clean, _ready(found, record, probes) as ready:
        report = read_suspect(ready, key, record, replace(offers, clean_twin=clean), plan, options.get("callback"))
        lineage = read_beside(ready, key, record, plan)
    told = (
        [] if lineage is None else [f"lineage: {text}" for text in lineage["warnings"] if text not in report.warnings]
    )
    return replace(report, lineage=lineage, warnings=(*report.warnings, *told))


def _tell(callback: Callback | None, report: VerificationReport) -> VerificationReport:
    """Call back after each look of a reading that takes all its looks at once."""
    if callback is not None:
        for taken in range(1, len(report.looks) + 1):
            callback(taken, len(report.looks))
    return report


@contextmanager
def _ready(found: Suspect, record: WatermarkRecord, probes: Probes | None) -> Iterator[Suspect]:
    """The suspect's plain denoiser, able to take the inputs that it is read with for the length of the block.

    Raises:
        NotTestableError: a denoiser that folds frames into the batch.
        RecordError: the record is of another class, or its bank holds what no such denoiser takes.
    """
    denoiser = unwrap(found.denoiser)
    refuse_folded_frames(type(denoiser).__name__)
    record.check_fits(denoiser)
    bank = record.bank if probes is None else fitting(probes.data, denoiser)
    check_conditioning(bank, denoiser)
    denoiser, cast = for_reading(denoiser)
    with without_ip_adapter(denoiser) as notes, on_known_inputs(denoiser, bank) as more:
        yield replace(found, denoiser=denoiser, warnings=(*found.warnings, *notes, *cast, *more))


def _refuse(label: str, plan: ReadingPlan, error: AIAOError, warnings: tuple[str, ...]) -> VerificationReport:
    """The report on a suspect that cannot answer."""
    beside = tuple(map(asdict, error.also_present))
    fields: dict[str, Any] = {
        "reason": str(error),
        "plan": plan.to_dict(),
        "also_present": beside,
        "warnings": warnings,
    }
    return VerificationReport("not_testable", label, plan.alpha, **fields)


def _expand(key: WatermarkKey | Leaf, record: WatermarkRecord, given: Any) -> WatermarkKey:
    """The key as the record's scheme expands it; of a leaf, the key that it is.

    Raises:
        KeyMismatchError: the folder given as the record commits to another key.
    """
    if isinstance(key, Leaf):
        return open_leaf(key, record)
    if isinstance(given, str | Path) and not record.belongs_to(key):
        raise KeyMismatchError(
            f"the record '{given}' is of {record.owner!r} and commits to another key than {key.owner!r}'s: "
            "pass the record that was published with this key."
        )
    return record.drawn(key)


def _choices(key: WatermarkKey) -> int:
    return key.choices if isinstance(key, LeafKey) else 1


def _by_former_names(clean_twin: Any, controls: Any, options: VerifyOptions) -> tuple[Any, Any]:
    """Clean twin and controls, under their former names too; those are taken out of `options`."""
    if "twin" in options:
        warn_renamed("twin=", "clean_twin=", stacklevel=2)
        clean_twin = _only_one("clean_twin", clean_twin, "twin", options.pop("twin"))
    if "clean_base" in options:
        warn_renamed("clean_base=", "controls=", stacklevel=2)
        old = options.pop("clean_base")
        controls = _only_one("controls", controls, "clean_base", None if old is None else {"clean_base": old})
    return clean_twin, controls


def _only_one(name: str, value: Any, former: str, old: Any) -> Any:
    if value is not None and old is not None:
        raise ConfigError(f"verify() got {name}= and {former}=, its former name: pass {name}= alone.")
    return old if value is None else value


def _plan(plan: ReadingPlan | None, options: VerifyOptions) -> ReadingPlan:
    """The plan given, or the thorough one with the fields given."""
    unknown = sorted(set(options) - set(VerifyOptions.__annotations__))
    if unknown:
        raise TypeError(f"verify() got an unexpected keyword argument {unknown[0]!r}")
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name in PLAN_OPTIONS}
    if plan is None:
        return ReadingPlan.thorough(**chosen)
    if chosen:
        raise ConfigError(f"{sorted(chosen)} are fields of the plan, and plan= was given too: set them in the plan.")
    return plan


def _offers(record: WatermarkRecord, options: VerifyOptions, probes: Probes | None) -> Offers:
    # Before any look: a broken offer is misuse, whatever the suspect.
    reference, healing = options.get("reference"), options.get("healing")
    found, warnings = (None, ()) if reference is None else reference_for(record, reference)
    if healing is None or healing is False:
        return Offers(None, found, None, warnings, probes)
    bank = record.bank if probes is None else probes.data
    return Offers(None, found, bank if healing is True else prepare(None, healing), warnings, probes)


def _open_clean_twin(
    record: WatermarkRecord, source: Any, suspect: Suspect
) -> AbstractContextManager[nn.Module | None]:
    if source is None:
        return nullcontext()
    if isinstance(source, bool):
        raise ConfigError(f"clean_twin is the clean model itself or where it lies, got {source}.")
    if record.teacher_sha256 is None:
        # A model made with the response patterns in mind could push any suspect towards them.
        raise RecordError(
            "the record names no clean twin, so none can be told from one made with the key: leave clean_twin out."
        )
    module = denoiser_of(source)
    if module is not None and unwrap(module) is unwrap(suspect.denoiser) and suspect.adapter is not None:
        raise ConfigError("clean_twin is the model that carries the suspect's adapter here: load the clean twin anew.")
    return open_clean_twin(record, source)
