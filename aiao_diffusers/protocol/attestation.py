"""What a signer states of a verification, as an in-toto statement: these files, read so, gave this verdict.

    _type           https://in-toto.io/Statement/v1
    subject         the suspect's files: names and digests
    predicateType   urn:aiao-diffusers:verdict:v1
    predicate       report    the whole report: verdict, p, looks, plan with its seed, dating, hashes, controls
                    record    scheme, commitment and hash of the record it was read with
                    origin    repository and commit, of a suspect from a Hub
                    files     SHA-256 of every other file of the evidence folder
                    versions  of what read it
                    time, signer    when it was signed, by the clock of the signer, and with which key

It is written as canonical JSON (sorted names, no spaces, ASCII) and signed as it is written (`dsse`).

Source: in-toto attestation framework v1 (github.com/in-toto/attestation); the predicate is our choice.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..errors import AttestationError, UnsafeFileError
from ..files.strict_json import parse_json
from ..files.text import short
from ..mark.record import is_hex
from .dsse import seal, unseal
from .signer import PublicKey, Signer


PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:aiao-diffusers:verdict:v1"
VERDICTS = ("verified", "not_verified", "not_testable")
DIGESTS = {"sha256": 64, "gitCommit": 40}
"""Hex digits by algorithm; `gitCommit` names a repository of which nothing was downloaded."""
MAX_SUBJECTS, MAX_DEPTH = 4096, 32
_FIELDS = ("_type", "subject", "predicateType", "predicate")
_PREDICATE = ("report", "record", "origin", "files", "versions", "time", "signer")


@dataclass(frozen=True)
class Subject:
    """A file that the verdict is about.

    Args:
        name (`str`): within the suspect's folder or repository.
        digest (`str`): hex. algorithm (`str`, defaults to `sha256`): one of `DIGESTS`.
    Raises:
        AttestationError: no name, or no such digest.
    """

    name: str
    digest: str
    algorithm: str = "sha256"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise AttestationError(f"a subject's name is {short(self.name)}, expected a text.")
        digits = DIGESTS.get(self.algorithm) if isinstance(self.algorithm, str) else None
        if digits is None or not isinstance(self.digest, str) or not is_hex(self.digest, digits):
            raise AttestationError(f"the digest of subject {short(self.name)} is {short(self.digest)}, which is none.")


@dataclass(frozen=True)
class Statement:
    """What is signed.

    Args:
        subject (`tuple[Subject, ...]`): at least one, each name once.
        report (`Mapping`): `VerificationReport.to_dict()`.
        record (`Mapping`): `scheme`, `commitment` and `sha256` of the record.
        origin (`Mapping`, *optional*): `repo` and `commit` of a suspect from a Hub.
        files (`Mapping[str, str]`): SHA-256 of each other file of the evidence folder.
        versions (`Mapping[str, str]`): of `aiao_diffusers`, `torch`, `diffusers`.
        time (`str`): ISO 8601 with a time zone. signer (`str`): `PublicKey.keyid`.
    Raises:
        AttestationError: a field is missing, of another kind, or contradicts another.
    """

    subject: tuple[Subject, ...]
    report: Mapping[str, Any]
    record: Mapping[str, str]
    origin: Mapping[str, str] | None
    files: Mapping[str, str]
    versions: Mapping[str, str]
    time: str
    signer: str

    def __post_init__(self) -> None:
        names = [one.name for one in self.subject]
        if not 0 < len(names) <= MAX_SUBJECTS or len(set(names)) != len(names):
            raise AttestationError(f"subject names 1 to {MAX_SUBJECTS} files, each once; got {short(names)}.")
        _require_texts("record", self.record, ("scheme", "commitment", "sha256"))
        _require_texts("versions", self.versions)
        _require_texts("files", self.files)
        if self.origin is not None:
            _require_texts("origin", self.origin, ("repo", "commit"))
        digests = {"record": self.record["sha256"], "signer": self.signer, **self.files}
        for name, digest in digests.items():
            if not isinstance(digest, str) or not is_hex(digest, 64):
                raise AttestationError(f"the SHA-256 of {short(name)} is {short(digest)}, expected 64 hex digits.")
        _check_report(self.report)
        try:
            zoned = datetime.fromisoformat(self.time).utcoffset() is not None
        except (TypeError, ValueError):
            zoned = False
        if not zoned:
            raise AttestationError(f"time is {short(self.time)}, expected ISO 8601 with a time zone.")

    def to_bytes(self) -> bytes:
        """The canonical payload."""
        subject = [{"name": one.name, "digest": {one.algorithm: one.digest}} for one in self.subject]
        predicate = {name: getattr(self, name) for name in _PREDICATE}
        return _canonical(dict(zip(_FIELDS, (STATEMENT_TYPE, subject, PREDICATE_TYPE, predicate), strict=True)))

    @classmethod
    def from_bytes(cls, payload: bytes) -> "Statement":
        """Read `to_bytes`.

        Raises:
            AttestationError: no such statement, of another version, with unknown fields, or spelled in another way.
        """
        try:
            document = parse_json(payload, "the statement")
        except UnsafeFileError as error:
            raise AttestationError(str(error)) from error
        for name, expected in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
            if document.get(name) != expected:
                raise AttestationError(
                    f"{name} is {short(document.get(name))}; this version reads {expected!r}: install its version."
                )
        if _is_deep(document):
            raise AttestationError(f"the statement nests deeper than {MAX_DEPTH}, which no report does.")
        _require_fields(document, _FIELDS, "the statement")
        predicate = _require_object(document["predicate"], "predicate")
        _require_fields(predicate, _PREDICATE, "predicate")
        if not isinstance(document["subject"], list):
            raise AttestationError(f"subject is {short(document['subject'])}, expected a list.")
        statement = cls(subject=tuple(map(_read_subject, document["subject"])), **predicate)
        if statement.to_bytes() != payload:
            raise AttestationError("the statement is spelled in another way than it was written: it was altered.")
        return statement


def sign_statement(statement: Statement, signer: Signer) -> bytes:
    """A DSSE envelope around a statement of this signer.

    Raises:
        AttestationError: the statement names another signer, or is too large.
    """
    if statement.signer != signer.public.keyid:
        raise AttestationError(f"the statement names signer {statement.signer}, the key is {signer.public.keyid}.")
    return seal(statement.to_bytes(), PAYLOAD_TYPE, signer)


def open_statement(envelope: bytes, key: PublicKey) -> Statement:
    """The statement in an envelope that `key` signed. Nothing of it is looked at before the signature holds.

    Raises:
        AttestationError: as `unseal` and `Statement.from_bytes`; or it names another signer.
    """
    statement = Statement.from_bytes(unseal(envelope, PAYLOAD_TYPE, key))
    if statement.signer != key.keyid:
        raise AttestationError(f"signer in the statement is {statement.signer}; the key that signed is {key.keyid}.")
    return statement


def _read_subject(entry: Any) -> Subject:
    fields = _require_object(entry, "a subject")
    _require_fields(fields, ("name", "digest"), "a subject")
    digest = _require_object(fields["digest"], "digest")
    if len(digest) != 1:
        raise AttestationError(f"subject {short(fields['name'])} has {len(digest)} digests, expected 1.")
    ((algorithm, value),) = digest.items()
    return Subject(fields["name"], value, algorithm)


def _check_report(report: Any) -> None:
    """The fields that a verdict rests on are there and do not contradict each other."""
    _require_object(report, "report")
    verdict, log10_p, alpha = (report.get(name) for name in ("verdict", "log10_p", "alpha"))
    if verdict not in VERDICTS:
        raise AttestationError(f"verdict is {short(verdict)}, expected one of {', '.join(VERDICTS)}.")
    if not _is_number(alpha) or not 0 < alpha < 1:
        raise AttestationError(f"alpha is {short(alpha)}, expected a number between 0 and 1.")
    if not (log10_p is None and verdict == "not_testable") and not (_is_number(log10_p) and log10_p <= 0):
        raise AttestationError(f"log10_p is {short(log10_p)}, expected a number of at most 0.")
    if verdict != "not_testable" and (log10_p <= math.log10(alpha)) != (verdict == "verified"):
        raise AttestationError(f"verdict {verdict} contradicts log10_p {log10_p} at alpha {alpha}.")
    if not isinstance(report.get("suspect"), str):
        raise AttestationError(f"suspect is {short(report.get('suspect'))}, expected a text.")
    for name in ("plan", "dating", "hashes"):
        _require_object(report.get(name), name)


def _canonical(document: Mapping[str, Any]) -> bytes:
    if _is_deep(document):
        raise AttestationError(f"the statement nests deeper than {MAX_DEPTH}, which no report does.")
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False, default=dict)
        _refuse_lone_halves(document)
    except (RecursionError, TypeError, ValueError) as error:
        raise AttestationError(f"the statement cannot be written as JSON: {short(str(error))}.") from error
    return text.encode()


def _is_deep(document: Any) -> bool:
    """Whether something lies deeper than `MAX_DEPTH`, found level by level: what recurses would fail on it."""
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, Mapping | list | tuple)
            for inner in (value.values() if isinstance(value, Mapping) else value)
        ]
    return bool(level)


def _refuse_lone_halves(document: Mapping[str, Any]) -> None:
    """Half a character (a lone surrogate) is JSON, but no terminal or file takes it."""
    json.dumps(document, ensure_ascii=False, default=dict).encode()


def _is_number(value: Any) -> bool:
    return type(value) is float and math.isfinite(value) or type(value) is int and abs(value) < 2**53


def _require_object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise AttestationError(f"{name} is {short(value)}, expected an object.")
    return value


def _require_texts(name: str, value: Any, fields: tuple[str, ...] | None = None) -> None:
    _require_object(value, name)
    if fields is not None:
        _require_fields(value, fields, name)
    for key, text in value.items():
        if not isinstance(text, str) or not isinstance(key, str):
            raise AttestationError(f"{name}: {short(key)} is {short(text)}, expected a text.")


def _require_fields(document: Mapping[str, Any], names: tuple[str, ...], what: str) -> None:
    wrong = sorted(set(map(str, document)) ^ set(names))
    if wrong:
        raise AttestationError(f"{what} lacks or does not know {short(wrong[0])}; its fields are {', '.join(names)}.")
