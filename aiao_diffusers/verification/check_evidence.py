"""Check an evidence folder as a judge does: offline first, and by a new reading where suspect and key are at hand."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ..errors import AIAOError, AttestationError, ConfigError
from ..files.text import short
from ..mark.key import WatermarkKey
from ..protocol.leaves import Leaf
from ..protocol.signer import PublicKey
from .claims import LINEAGE, NO_LINEAGE, PROVES
from .dating import DatingTerms, date_record
from .evidence_folder import Evidence, open_evidence
from .lineage_question import lineage_plan
from .plan import Futility, ReadingPlan
from .report import VerificationReport
from .suspect_files import differences, name_files
from .verify import verify


TOLERANCE = 1e-6
"""Relative, of log10 p."""
MAX_TRIALS, MAX_AMPLITUDES = 4096, 64
"""Of a plan that is read anew: a signer whom nobody knows must not decide how long a check takes."""
_SET_BY_VERIFY = ("leaves", "clean_twin", "reference", "healing")
UNVOUCHED = (
    "Nobody vouches for the signer: the signature was checked with the key that lies in the folder itself. Get the key from the signer "
    "and pass it (signer=, --signer)."
)


class ReadingOptions(TypedDict, total=False):
    """What a new reading needs beside suspect and key; as for `verify`."""

    base: Any
    weight_name: str | None
    revision: str | None
    clean_twin: Any
    reference: Any
    probes: Any
    controls: Any
    callback: Any


@dataclass(frozen=True)
class EvidenceCheck:
    """An evidence folder that holds.

    Args:
        verdict (`str`), log10_p (`float`, *optional*), alpha (`float`), suspect (`str`), proves (`str`): as signed.
        signer (`str`): id of the key. vouched (`bool`): the judge brought that key. time (`str`): when it was signed, by the signer's
            clock.
        subject (`dict`): digest of each of the suspect's files. origin (`dict`, *optional*): repository and commit.
        record (`dict`): scheme, commitment, hash. dating (`dict`): as `date_record` says it now, on the judge's terms.
        compared (`bool`): the suspect at hand has these very files. recomputed (`bool`): a new reading gave the same verdict and p.
        notes (`tuple[str, ...]`): what was not checked.
        lineage (`str`, *optional*): beside a verdict on what runs, what the adapter's file or the weights alone say, as signed.
    """

    verdict: str
    log10_p: float | None
    alpha: float
    suspect: str
    proves: str
    signer: str
    vouched: bool
    time: str
    subject: dict[str, str]
    origin: dict[str, str] | None
    record: dict[str, str]
    versions: dict[str, str]
    dating: dict[str, Any]
    compared: bool = False
    recomputed: bool = False
    notes: tuple[str, ...] = field(default=())
    lineage: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "notes": list(self.notes)}

    def to_markdown(self) -> str:
        """The result for people."""
        origin = [] if self.origin is None else [f"- suspect: {self.origin['repo']} at commit {self.origin['commit']}"]
        p = [] if self.log10_p is None else [f"- log10 p = {self.log10_p:.1f} (alpha {self.alpha:g})"]
        lines = [
            f"# {self.verdict}: {short(self.suspect)}",
            "",
            self.proves,
            "",
            self.dating["assumption"],
            "",
            *p,
            *([] if self.lineage is None else [f"- lineage: {self.lineage}"]),
            *origin,
        ]
        lines += [f"- file {short(name)}: {digest}" for name, digest in list(self.subject.items())[:20]]
        lines += [f"- and {len(self.subject) - 20} more files"] if len(self.subject) > 20 else []
        return "\n".join(
            [
                *lines,
                f"- record: commitment {self.record['commitment']}, SHA-256 {self.record['sha256']}",
                f"- signed {self.time} with key {self.signer}" + (", which you named" if self.vouched else ""),
                f"- suspect's files: {'the same' if self.compared else 'not at hand'}",
                f"- verdict: {'the same by a new reading' if self.recomputed else 'as signed, not read again'}",
                *(f"- note: {text}" for text in self.notes),
                "",
            ]
        )


def check_evidence(
    folder: str | Path,
    suspect: str | Path | None = None,
    key: WatermarkKey | Leaf | None = None,
    *,
    signer: PublicKey | str | Path | None = None,
    published: Any = None,
    authorities: Any = None,
    commitments: int | None = None,
    **reading: Unpack[ReadingOptions],
) -> EvidenceCheck:
    """Does this evidence folder hold, and what does it say?

    Offline: signature, form, the digest of each file, record, commitment, date and beacon. With `suspect` its files are compared;
    with `key` too, the verdict is read anew, by the plan and the seed of the statement.

    Args:
        folder: the evidence folder.
        suspect (*optional*): the folder, file or repository that it is about.
        key (*optional*): the owner's key, or the leaf that it was read with.
        signer (*optional*): the public key of whom you trust, or its file; default: the folder's own.
        published, authorities, commitments (*optional*): your own terms, as for `verify`; default: the day and the number in the
            statement, and the authorities of `certifi`.
        base, weight_name, revision, clean_twin, reference, probes, controls, callback (*optional*): of the new reading, as for `verify`.
    Returns:
        `EvidenceCheck`: never of a folder that does not hold.
    Raises:
        AttestationError: something was altered, contradicts your terms, or a new reading differs; the message says what.
        ProtocolError: the date or the beacon does not hold. KeyFileError: `signer` is no public key.
        ConfigError: a key without a suspect, or options of a reading without a key.
    Source: our choice.
    """
    given = sorted(name for name, value in reading.items() if value is not None and name != "callback")
    if key is not None and suspect is None:
        raise ConfigError("a key reads the verdict anew, which needs the suspect: pass suspect= (--suspect) too.")
    if given and (suspect is None or key is None and set(given) - {"weight_name", "revision"}):
        raise ConfigError(
            f"{', '.join(given)} belong to a new reading: pass suspect= and key= (--suspect, --key) too."
        )
    trusted = PublicKey.load(signer) if isinstance(signer, str | Path) else signer
    terms = DatingTerms.read(published, authorities)
    evidence = open_evidence(folder, trusted)
    dating = _check_dating(evidence, terms, commitments)
    notes = [] if evidence.vouched else [UNVOUCHED]
    if suspect is not None:
        _compare_files(evidence, suspect, reading)
    if key is not None:
        assert suspect is not None  # by the test above
        notes += _read_again(evidence, suspect, key, terms, reading)
    statement, report = evidence.statement, evidence.statement.report
    return EvidenceCheck(
        **{name: report[name] for name in ("verdict", "log10_p", "alpha", "suspect")},
        proves=_proven(report),
        signer=statement.signer,
        vouched=evidence.vouched,
        time=statement.time,
        subject={one.name: one.digest for one in statement.subject},
        origin=None if statement.origin is None else dict(statement.origin),
        record=dict(statement.record),
        versions=dict(statement.versions),
        dating=dating,
        compared=suspect is not None,
        recomputed=key is not None,
        notes=tuple(notes),
        lineage=_lineage_beside(report),
    )


def _lineage_beside(report: Mapping[str, Any]) -> str | None:
    """Of a verdict on what runs, the lineage that the report states beside it, in words of this version."""
    told = report.get("lineage")
    if not isinstance(told, Mapping) or str(report["plan"].get("name")) in NO_LINEAGE:
        return None
    p = told.get("log10_p")
    figure = f", log10 p = {p:.1f}" if type(p) in (int, float) else ""
    source = "the weights" if told.get("kind") == "weights" else "the adapter's file"
    return f"by {source} alone {short(told.get('verdict'))}{figure}"


def _proven(report: Mapping[str, Any]) -> str:
    if report["verdict"] == "verified":
        return PROVES.get(str(report.get("proves")), PROVES["nothing"])
    if report["verdict"] == "not_verified":
        return NO_LINEAGE.get(str(report["plan"].get("name")), PROVES["nothing"])
    return f"Nothing: the question could not be put to this suspect ({short(report.get('reason'), 300)})."


def _check_dating(evidence: Evidence, terms: DatingTerms, commitments: int | None) -> dict[str, Any]:
    """What the date says on the judge's terms, once what the statement claims of it was found true."""
    report, record = evidence.statement.report, evidence.record
    told, stated_count = report["dating"], report["plan"].get("commitments")
    if not told and report["verdict"] != "not_testable":
        raise AttestationError("the report says nothing of a date (dating is empty): it was altered.")
    if type(stated_count) is not int or stated_count != told.get("commitments", stated_count):
        raise AttestationError(
            f"commitments is {short(stated_count)} in the plan, {short(told.get('commitments'))} in dating."
        )
    if commitments is not None and commitments != stated_count:
        raise AttestationError(
            f"p was multiplied by {short(stated_count)} commitments, you count {commitments} (commitments=): have it read anew."
        )
    stated_day = told.get("published")
    if terms.published is not None and stated_day is not None and terms.published.isoformat() != stated_day:
        raise AttestationError(
            f"the statement takes the suspect as first published on {short(stated_day)}, you say {terms.published} (published=)."
        )
    try:
        stated = DatingTerms.read(stated_day, terms.authorities)
    except ConfigError as error:
        raise AttestationError(f"dating in the statement: {error}") from error
    # A date that the statement claims must hold; of proofs on which it claims nothing a judge hears all the same.
    claims = told.get("status") == "dated" or told.get("dated") is not None
    found = date_record(record, stated, commitments=stated_count, trusted=claims)
    names = ("scheme", "commitment", *(("status", "dated", "authority", "beacon") if claims else ())) if told else ()
    for name in names:
        if told.get(name) != found.get(name):
            because = "; ".join(found["reasons"])
            raise AttestationError(
                f"dating: {name} is {short(told.get(name))} in the statement, and {short(found.get(name))} by the files beside it"
                + (f" ({because})." if because else ".")
            )
    if terms.published is None or stated_day is not None:
        return found
    return date_record(record, terms, commitments=stated_count, trusted=claims)


def _compare_files(evidence: Evidence, suspect: str | Path, reading: ReadingOptions) -> None:
    revision = reading.get("revision")
    origin = evidence.statement.origin
    if revision is None and origin is not None and str(suspect) == origin["repo"]:
        reading["revision"] = revision = origin["commit"]
    found = name_files(suspect, reading.get("weight_name"), revision)
    if lines := differences(evidence.statement.subject, found.subject):
        raise AttestationError(f"'{suspect}' has other files than the statement: {short('; '.join(lines), 600)}.")


def _read_again(
    evidence: Evidence, suspect: str | Path, key: WatermarkKey | Leaf, terms: DatingTerms, reading: ReadingOptions
) -> list[str]:
    """A new reading, and what it could not repeat; AttestationError where it differs."""
    stated = evidence.statement.report
    plan = read_plan(stated["plan"])
    _require_offers(stated, reading)
    lineage = evidence.record.lineage or {}
    if stated["plan"].get("name") == LINEAGE and reading.get("base") is not None and not lineage.get("only"):
        raise AttestationError(
            "the signed reading had no base, it was of the adapter's file alone: leave out base= (--base)."
        )
    found = verify(
        suspect,
        key,
        reading.get("base"),
        evidence.record,
        clean_twin=reading.get("clean_twin"),
        plan=plan,
        controls=reading.get("controls"),
        **{name: reading.get(name) for name in ("weight_name", "revision", "reference", "probes", "callback")},  # type: ignore[arg-type]
        healing=True if stated["plan"].get("healing") else None,
        authorities=terms.authorities,
    )
    if lines := compare_reports(stated, found):
        raise AttestationError(f"a new reading by the same plan differs from the statement: {'; '.join(lines)}.")
    controls = set(_names(stated.get("controls"))) - {"wrong_response"}
    if controls and reading.get("controls") is None:
        return [f"controls in the statement were not read again: {short(sorted(controls), 300)}."]
    return []


def _require_offers(stated: Mapping[str, Any], reading: ReadingOptions) -> None:
    """What was offered to the signed reading is offered to the new one, and nothing else."""
    offered = {name: bool(stated["plan"].get(name)) for name in ("clean_twin", "reference")}
    if "ended" not in stated["plan"]:
        offered = {}  # nothing was read
    for name, had in {**offered, "probes": stated.get("probes") is not None}.items():
        has = reading.get(name) is not None
        if has != had:
            option = f"{name}= (--{name.replace('_', '-')})"
            raise AttestationError(
                f"the signed reading had {'' if had else 'no '}{name}: {'pass' if had else 'leave out'} {option}."
            )
    controls = set(_names(stated.get("controls"))) - {"wrong_response"}
    if stated["verdict"] == "not_testable" and controls and reading.get("controls") is None:
        raise AttestationError(
            f"the verdict rests on controls ({short(sorted(controls), 300)}): pass controls= (--control)."
        )


def _names(controls: Any) -> list[str]:
    return list(map(str, controls)) if isinstance(controls, Mapping) else []


def read_plan(told: Mapping[str, Any]) -> ReadingPlan:
    """The plan that a report names, to read by it again.

    Raises:
        AttestationError: a field is missing or out of range, or this version takes other looks by that plan.
    """
    try:
        plan, looks = (_lineage_as_told if str(told.get("name")) in NO_LINEAGE else _plan_as_told)(told)
    except (AIAOError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise AttestationError(f"plan in the statement cannot be read: {short(str(error))}.") from error
    if looks != told.get("looks"):
        raise AttestationError(
            "plan in the statement names other looks than this version takes by it: install its version."
        )
    return plan


def _plan_as_told(told: Mapping[str, Any]) -> tuple[ReadingPlan, list[str]]:
    """A plan of readings with forwards, and the labels of the looks that this version takes by it."""
    values = {one.name: told[one.name] for one in fields(ReadingPlan) if one.name not in _SET_BY_VERIFY}
    futility = values["futility"]
    values["futility"] = None if futility is None else Futility(**futility)
    if type(values["seed"]) is not int or not all(type(one) in (int, float) for one in values["amplitudes"]):
        raise ConfigError("seed is a whole number, amplitudes are numbers.")
    plan = ReadingPlan(**values)
    if plan.trials > MAX_TRIALS or len(plan.amplitudes) > MAX_AMPLITUDES:
        raise ConfigError(f"it has more than {MAX_TRIALS} trials or {MAX_AMPLITUDES} amplitudes.")
    return plan, ReadingPlan(**values, **{name: told[name] for name in _SET_BY_VERIFY}).to_dict()["looks"]


def _lineage_as_told(told: Mapping[str, Any]) -> tuple[ReadingPlan, list[str]]:
    """The same of the question of lineage, for which alpha and commitments alone count."""
    plan = ReadingPlan(alpha=told["alpha"], commitments=told["commitments"])
    return plan, lineage_plan(plan, told["name"])["looks"]


def compare_reports(stated: Mapping[str, Any], found: VerificationReport) -> list[str]:
    """What differs between a signed report and a new one, a line each."""
    new = found.to_dict()
    pairs = [(name, stated.get(name), new.get(name)) for name in ("verdict", "alpha", "seed", "probes")]
    pairs += [
        (f"hashes: {name}", stated["hashes"].get(name), new["hashes"].get(name))
        for name in ("commitment", "suspect", "base", "record")
    ]
    pairs += [
        (f"plan: {name}", stated["plan"].get(name), new["plan"].get(name))
        for name in ("leaves", "commitments", "looks")
    ]
    lineage, new_lineage = (
        told if isinstance(told, Mapping) else {} for told in (stated.get("lineage"), found.lineage)
    )
    pairs += [(f"lineage: {name}", lineage.get(name), new_lineage.get(name)) for name in ("verdict", "sha256")]
    lines = [f"{name} was {short(old)}, now {short(now)}" for name, old, now in pairs if old != now]
    figures = {"log10_p": (stated.get("log10_p"), found.log10_p)}
    figures["lineage: log10_p"] = lineage.get("log10_p"), new_lineage.get("log10_p")
    return [
        f"{name} was {short(old)}, now {new}" for name, (old, new) in figures.items() if not _same(old, new)
    ] + lines


def _same(old: Any, new: Any) -> bool:
    """Whether two figures are one, but for rounding."""
    if type(old) not in (int, float) or type(new) not in (int, float):
        return old is new
    return math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=1e-12)
