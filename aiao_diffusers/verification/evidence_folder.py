"""An evidence folder: a signed report, and beside it everything that a judge checks it with.

    statement.dsse.json    the signed statement (`protocol.attestation`); what counts
    signer.pub             the key that signed it
    report.json, report.md the report, for reading
    aiao/                  the record it was read with: bank, commitment, timestamp, beacon

The statement names the SHA-256 of every other file, so none can be changed, added or left out. No key of a mark is in it, but a
report names sites that the key chose.

Source: our choice.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import AIAOError, AttestationError, KeyFileError, OutputExistsError, RecordError
from ..files.atomic import write_bytes, write_folder
from ..files.text import short
from ..hub.download import MAX_RECORD_BYTES, pull_record
from ..mark.committed import canonical, commitment_document
from ..mark.key import BOUND_SCHEME
from ..mark.record import BANK, COMMITMENT, COMPANIONS, DOCUMENT, FOLDER, WatermarkRecord
from ..protocol.attestation import Statement, open_statement, sign_statement
from ..protocol.dsse import MAX_ENVELOPE, MAX_PAYLOAD
from ..protocol.signer import MAX_KEY_FILE, PublicKey, Signer
from .report import VerificationReport
from .suspect import find_record
from .suspect_files import name_files


STATEMENT, PUBLIC, REPORT, TEXT = "statement.dsse.json", "signer.pub", "report.json", "report.md"
MOST: dict[str, int] = {
    STATEMENT: MAX_ENVELOPE,
    PUBLIC: MAX_KEY_FILE,
    REPORT: 2 * MAX_PAYLOAD,
    TEXT: 2 * MAX_PAYLOAD,
    **{f"{FOLDER}/{name}": 16 * 2**20 for name in (DOCUMENT, COMMITMENT)},
    **{f"{FOLDER}/{name}": 2**18 for name in COMPANIONS.values()},
    f"{FOLDER}/{BANK}": MAX_RECORD_BYTES,
}
"""Every file that such a folder may have, and how many bytes it has at most."""
_REQUIRED = {STATEMENT, PUBLIC, REPORT, TEXT, f"{FOLDER}/{DOCUMENT}", f"{FOLDER}/{BANK}"}


@dataclass(frozen=True)
class Evidence:
    """A folder whose signature and digests hold.

    Args:
        folder (`Path`): where it lies. statement (`Statement`): what was signed. record (`WatermarkRecord`): the one beside it.
        vouched (`bool`): the signature was checked with a key that the judge brought, not with the folder's own.
    """

    folder: Path
    statement: Statement
    record: WatermarkRecord
    vouched: bool


def check_new(folder: str | Path) -> None:
    """Raises OutputExistsError where something of this name is there."""
    if Path(folder).is_symlink() or Path(folder).exists():
        raise OutputExistsError(f"output '{folder}' exists: choose another name or remove it.")


def write_evidence(
    report: VerificationReport,
    suspect: str | Path,
    record: Any,
    signer: Signer | str | Path,
    folder: str | Path,
    *,
    weight_name: str | None = None,
    revision: str | None = None,
) -> Path:
    """Sign a report and write the evidence folder, whole or not at all.

    Args:
        report (`VerificationReport`): of any verdict.
        suspect: the folder, file or repository that was read; its files are hashed here.
        record: the `WatermarkRecord` that it was read with, or its folder.
        signer (`Signer`): of who reports, or its key file.
        folder: new.
        weight_name, revision (*optional*): as `verify` was asked.
    Returns:
        `Path`: the folder.
    Raises:
        OutputExistsError: the folder exists. KeyFileError: no signer's key, or others can read it.
        AttestationError: the report was read with another record.
        RecordError, SuspectError, HubError, ConfigError: record or suspect cannot be found, or has no files.
    Source: our choice.
    """
    signer = signer if isinstance(signer, Signer) else Signer.load(signer)
    check_new(folder)
    found = _require_read_with(report, find_record(record))
    revision = report.source.get("suspect", {}).get("commit") or revision
    named = name_files(suspect, weight_name, revision)
    told = report.to_dict()
    with write_folder(Path(folder)) as partial:
        found.save(partial)
        write_bytes(partial / PUBLIC, signer.public.to_pem())
        write_bytes(partial / REPORT, _report_bytes(told))
        write_bytes(partial / TEXT, report.to_markdown().encode())
        statement = Statement(
            subject=named.subject,
            report=told,
            record=_describe_record(found),
            origin=named.origin,
            files={name: _sha256(partial / name) for name in list_files(partial)},
            versions=_versions(),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            signer=signer.public.keyid,
        )
        write_bytes(partial / STATEMENT, sign_statement(statement, signer))
        open_evidence(partial, signer.public)  # nothing is handed out that a judge's check would refuse
    return Path(folder)


def find_record_read(report: VerificationReport, *sources: Any) -> WatermarkRecord:
    """The record that a report was read with, among folders and repositories where `verify` looks.

    Raises:
        RecordError: none of them holds it.
    """
    sha256 = report.hashes.get("record")
    commits = {told["repo"]: told["commit"] for told in report.source.values() if "repo" in told}
    for source in sources:
        found = find_record(source)
        if found is None and isinstance(source, str) and not Path(source).exists() and source.count("/") == 1:
            found = find_record(pull_record(source, commits.get(source)))
        if found is not None and sha256 in (None, found.sha256):
            return found
    raise RecordError(
        "the record that the suspect was read with was not found again: pass record=FOLDER (or --record)."
    )


def open_evidence(folder: str | Path, signer: PublicKey | None = None) -> Evidence:
    """Read an evidence folder and check all that needs neither suspect nor key.

    In this order: names, kinds and sizes of the files; the signature; the statement's form; each file's digest; that report and
    record are those of the statement.

    Args:
        signer (`PublicKey`, *optional*): of whom the judge trusts; default: the folder's own, for which nobody vouches.
    Raises:
        AttestationError: something is missing, altered, added, too large, a link, or of another folder; the message says what.
    """
    try:
        return _open(Path(folder), signer)
    except OSError as error:
        raise AttestationError(
            f"'{folder}' cannot be read ({error.strerror or error}): see who may read its files."
        ) from error


def _open(folder: Path, signer: PublicKey | None) -> Evidence:
    names = list_files(folder)
    missing = sorted(_REQUIRED - set(names))
    if missing:
        raise AttestationError(f"'{folder}' lacks {missing[0]}: ask for the whole evidence folder.")
    try:
        own = PublicKey.load(folder / PUBLIC)
    except KeyFileError as error:
        raise AttestationError(f"{PUBLIC}: {error}") from error
    if signer is not None and own != signer:
        raise AttestationError(
            f"{PUBLIC} is key {own.keyid}, and the signer you named has {signer.keyid}: this is not that signer's report."
        )
    try:
        statement = open_statement((folder / STATEMENT).read_bytes(), own)
    except AttestationError as error:
        raise AttestationError(f"{STATEMENT}: {error}") from error
    _check_files(folder, names, statement)
    if (folder / REPORT).read_bytes() != _report_bytes(statement.report):
        raise AttestationError(f"{REPORT} is not the report in the statement.")
    return Evidence(folder, statement, _check_record(folder, statement), signer is not None)


def list_files(folder: Path) -> list[str]:
    """The files of an evidence folder, none of them read.

    Raises:
        AttestationError: no folder, a file that belongs in none, a link, no plain file, or one larger than it may be.
    """
    if not folder.is_dir():
        raise AttestationError(f"'{folder}' is no folder: pass the evidence folder that `aiao verify --attest` wrote.")
    names = []
    for name, path in _entries(folder):
        if path.is_symlink():
            raise AttestationError(f"{short(name)} is a link: an evidence folder holds its files themselves.")
        if path.is_dir() and name == FOLDER:
            continue
        if name not in MOST or not path.is_file():
            raise AttestationError(
                f"{short(name)} is no file of an evidence folder: remove it, or ask for the folder anew."
            )
        size = path.stat().st_size
        if size > MOST[name]:
            raise AttestationError(f"{name} has {size} bytes; such a file has at most {MOST[name]}.")
        names.append(name)
    return sorted(names)


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.iterdir():
        yield path.name, path
    inner = folder / FOLDER
    if inner.is_dir() and not inner.is_symlink():
        for path in inner.iterdir():
            yield f"{FOLDER}/{path.name}", path


def _check_files(folder: Path, names: list[str], statement: Statement) -> None:
    """The folder's files are those that the statement names, byte by byte."""
    stated = {**statement.files}
    if wrong := sorted(set(stated) ^ ({*names} - {STATEMENT})):
        where = "names it, and it is missing" if wrong[0] in stated else "does not name it"
        raise AttestationError(f"{short(wrong[0])}: the statement {where}.")
    for name, digest in stated.items():
        found = _sha256(folder / name)
        if found != digest:
            raise AttestationError(
                f"{name} has SHA-256 {found}, the statement says {digest}: it was altered or exchanged."
            )


def _check_record(folder: Path, statement: Statement) -> WatermarkRecord:
    try:
        record = WatermarkRecord.load(folder)
    except AIAOError as error:
        raise AttestationError(f"{FOLDER}/{DOCUMENT}: {error}") from error
    found, stated = _describe_record(record), statement.record
    for name, value in found.items():
        if stated[name] != value:
            raise AttestationError(f"{name} of the record is {value}, the statement says {short(stated[name])}.")
    read_with = statement.report["hashes"].get("record")
    # A suspect that could not be read was read with no record.
    if read_with != record.sha256 and (read_with is not None or statement.report["verdict"] != "not_testable"):
        raise AttestationError(f"the report was read with record {short(read_with)}, {FOLDER}/ holds {record.sha256}.")
    document, bound = folder / FOLDER / COMMITMENT, record.scheme == BOUND_SCHEME
    expected = canonical(commitment_document(record.committed_fields())) if bound else None
    if (document.read_bytes() if document.exists() else None) != expected:
        raise AttestationError(f"{FOLDER}/{COMMITMENT} is not the commitment of the record beside it.")
    return record


def _require_read_with(report: VerificationReport, record: WatermarkRecord | None) -> WatermarkRecord:
    if record is None:
        raise RecordError("evidence holds the record that the suspect was read with: pass it, or its folder.")
    read_with = report.hashes.get("record")
    if read_with not in (None, record.sha256):
        raise AttestationError(
            f"the report was read with record {read_with}, this one is {record.sha256}: pass that one."
        )
    return record


def _describe_record(record: WatermarkRecord) -> dict[str, str]:
    return {"scheme": record.scheme, "commitment": record.commitment, "sha256": record.sha256}


def _report_bytes(report: Mapping[str, Any]) -> bytes:
    return (json.dumps(report, indent=2, sort_keys=True) + "\n").encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for name in ("aiao_diffusers", "torch", "diffusers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that was never installed
            found[name] = "unknown"
    return found
