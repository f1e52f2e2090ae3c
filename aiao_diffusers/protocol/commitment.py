"""A commitment: record and key fixed before the beacon is drawn, as files that can be published and dated.

    commitment.json                     the canonical document; publish it, its SHA-256 is the commitment
    commitment.probe.safetensors        the probe bank whose hash it names; goes into the record
    commitment.reference.safetensors    the alignment reference whose hash it names; private, as the key
    commitment.tsr                      an RFC 3161 timestamp over commitment.json
    commitment.beacon.json              the randomness drawn after that date
    commitment.places.json              further dated places, as the owner names them

Source: our choice.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..denoiser.inputs import LatentData
from ..denoiser.sites import Site
from ..errors import AIAOError, CommitmentError, KeyMismatchError, OutputExistsError, RecordError
from ..files.atomic import write_bytes
from ..files.strict_json import parse_json
from ..files.text import short
from ..mark.carried import parse_lineage
from ..mark.committed import (
    COMMITTED,
    LINEAGE,
    VERSION,
    VERSION_FIELD,
    Companions,
    canonical,
    commitment_document,
)
from ..mark.key import BEACON_BYTES, WatermarkKey
from ..mark.record import MAX_COMPANION_BYTES, WatermarkRecord, bank_bytes, bank_sha256
from .beacon import Beacon


ENDINGS = {"timestamp": ".tsr", "beacon": ".beacon.json", "places": ".places.json"}
PROBE, REFERENCE = ".probe.safetensors", ".reference.safetensors"
MAX_DOCUMENT_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Commitment:
    """What an owner fixes before embedding.

    Args:
        fields (`Mapping[str, Any]`): of the record to come (`COMMITTED`), as `WatermarkRecord` takes them.
        bank (`LatentData`): the probe bank.
        companions (`Companions`): its date and its beacon, as far as they are there.
    Raises:
        CommitmentError: fields missing, unknown or out of range, or another bank than the one named.
    """

    fields: Mapping[str, Any]
    bank: LatentData
    companions: Companions = Companions()

    def __post_init__(self) -> None:
        if wrong := sorted((set(self.fields) - {LINEAGE}) ^ set(COMMITTED)):
            raise CommitmentError(f"a commitment has other fields ({', '.join(wrong)}): make it with `aiao commit`.")
        if bank_sha256(self.bank) != self.fields["probe_sha256"]:
            raise CommitmentError(
                "the probe bank is not the one that the commitment names: restore the file beside it."
            )
        try:
            self._record(b"\0" * BEACON_BYTES, None)
        except RecordError as error:
            raise CommitmentError(f"this commitment can become no record: {error}") from error

    @property
    def document(self) -> bytes:
        """The canonical bytes of `commitment.json`."""
        return canonical(commitment_document(self.fields))

    @property
    def sha256(self) -> str:
        """The commitment, 64 hex digits."""
        return hashlib.sha256(self.document).hexdigest()

    @property
    def beacon(self) -> Beacon | None:
        """The beacon beside it, signature not checked (`check_beacon`); None before the draw."""
        return (
            None
            if self.companions.beacon is None
            else Beacon.from_dict(parse_json(self.companions.beacon, ENDINGS["beacon"]))
        )

    def drawn(self, key: WatermarkKey) -> WatermarkKey:
        """`key` under this commitment's beacon.

        Raises:
            KeyMismatchError: the commitment is of another key. CommitmentError: no beacon was drawn yet.
        """
        if self.fields["key_sha256"] != key.fingerprint:
            raise KeyMismatchError(
                f"the commitment is of {short(self.fields['owner'])} and names another key than {key.owner!r}'s: pass that key."
            )
        beacon = self.beacon
        if beacon is None:
            raise CommitmentError(
                "no beacon was drawn for this commitment: run `aiao commit COMMITMENT --beacon drand` an hour after its date."
            )
        return key.drawn_with(beacon.randomness)

    def to_record(self, marked_sha256: str) -> WatermarkRecord:
        """The record to publish beside weights of this hash.

        Raises:
            CommitmentError: no beacon was drawn yet.
        """
        beacon = self.beacon
        if beacon is None:
            raise CommitmentError("no beacon was drawn for this commitment, so no record can follow from it.")
        return self._record(beacon.randomness, marked_sha256)

    def with_companions(self, **files: bytes) -> "Commitment":
        """The same with a date or a beacon; one that is there is never replaced.

        Raises:
            CommitmentError: such a file is there already: a second draw would let the owner choose between two.
        """
        for name, content in files.items():
            there = getattr(self.companions, name)
            if there is not None and there != content:
                raise CommitmentError(
                    f"this commitment has its {name} already ({ENDINGS[name]}), which is never replaced: commit anew."
                )
        return replace(self, companions=replace(self.companions, **files))

    def _record(self, beacon: bytes, marked_sha256: str | None) -> WatermarkRecord:
        values = {name: value for name, value in self.fields.items() if name != "probe_sha256"}
        return WatermarkRecord(
            **values,
            bank=self.bank,
            beacon=beacon.hex(),
            commitment=self.sha256,
            marked_sha256=marked_sha256,
            companions=self.companions,
        )

    def save_new(self, path: str | Path) -> Path:
        """Write `path` and the files beside it, the document last.

        Raises:
            OutputExistsError: one of them exists.
        """
        path = Path(path)
        files = {**self._files(path), path.with_suffix(PROBE): bank_bytes(self.bank), path: self.document}
        check_free(path)
        for name, content in files.items():
            write_bytes(name, content)
        return path

    def save_companions(self, path: str | Path) -> None:
        """Write date and beacon beside the commitment at `path`, which stays as it is."""
        for name, content in self._files(Path(path)).items():
            write_bytes(name, content)

    def _files(self, path: Path) -> dict[Path, bytes]:
        found = {path.with_suffix(ending): getattr(self.companions, name) for name, ending in ENDINGS.items()}
        return {name: content for name, content in found.items() if content is not None}

    @classmethod
    def load(cls, path: str | Path) -> "Commitment":
        """Read a commitment and the files beside it.

        Raises:
            CommitmentError: missing, cut, altered, not canonical, or of another version.
        """
        path = Path(path)
        try:
            raw = _read_bounded(path, MAX_DOCUMENT_BYTES)
            fields = parse_fields(raw, path.name)
            files = {
                name: _read_bounded(path.with_suffix(ending), MAX_COMPANION_BYTES)
                for name, ending in ENDINGS.items()
                if path.with_suffix(ending).is_file()
            }
            commitment = cls(fields, LatentData.load(path.with_suffix(PROBE)), Companions(**files))
        except CommitmentError as error:
            raise CommitmentError(f"'{path}': {error}") from error
        except AIAOError as error:
            raise CommitmentError(f"'{path}' is no whole commitment: {error}") from error
        if commitment.document != raw:
            raise CommitmentError(f"'{path}' is not as `aiao commit` wrote it: it was changed or printed anew.")
        return commitment


def check_free(path: Path) -> None:
    """Raises OutputExistsError where `path` or a file that belongs beside it exists."""
    for name in (path, *(path.with_suffix(ending) for ending in (PROBE, REFERENCE, *ENDINGS.values()))):
        if name.exists():
            raise OutputExistsError(f"output '{name}' exists: choose another name or remove it.")


def parse_fields(raw: bytes, where: str) -> dict[str, Any]:
    """The fields of a commitment's document, as a record takes them.

    Raises:
        CommitmentError: another version, or fields missing, unknown or of the wrong kind. UnsafeFileError: hostile JSON.
    """
    document = parse_json(raw, where)
    version = document.pop(VERSION_FIELD, None)
    if version != VERSION:
        raise CommitmentError(f"it is of version {short(version)}; this version of the library reads {VERSION}.")
    wrong = sorted((set(document) - {LINEAGE}) ^ set(COMMITTED))
    if wrong:
        raise CommitmentError(f"it has unknown fields or lacks some: {short(', '.join(wrong))}.")
    try:
        for name in ("kappa", "response"):
            document[name] = float(document[name])
        if document["loudness"] is not None:
            document["loudness"] = tuple(float(gain) for gain in document["loudness"])
        document["layout"] = tuple(Site(n, order, *widths) for order, (n, *widths) in enumerate(document["layout"]))
        document["scheduler"] = json.loads(document["scheduler"])
        if LINEAGE in document:
            document[LINEAGE] = parse_lineage(document[LINEAGE])
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise CommitmentError(f"a field is of the wrong kind ({short(str(error))}).") from error
    return document


def _read_bounded(path: Path, most: int) -> bytes:
    try:
        if path.stat().st_size > most:
            raise CommitmentError(f"'{path.name}' has {path.stat().st_size} bytes; such a file has at most {most}.")
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise CommitmentError(f"'{path.name}': {reason}; make it with `aiao commit`.") from error
