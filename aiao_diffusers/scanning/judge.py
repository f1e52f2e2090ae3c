"""Reading suspects one after another, and the rows of those that cannot be read.

Adapters are traced first, by their files alone: on which model were they trained? Then what a declared link ties to the base is read
on the resident denoiser.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import (
    AIAOError,
    BudgetSpentError,
    HubError,
    LoraNotLoadedError,
    UnsafeFileError,
    WrongBaseError,
)
from ..formats.detect import detect
from ..hub.candidates import Candidate
from ..lineage.blank import blank_of
from ..lineage.reading import read_lineage
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from ..verification.plan import ReadingPlan
from ..verification.verify import verify
from .log import ScanRow
from .resident import Resident, adapter_digest, place_on_base


_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (UnsafeFileError, "unsafe format"),
    (WrongBaseError, "other architecture"),
    (LoraNotLoadedError, "changes no denoiser of this kind"),
    (HubError, "out of reach"),
)


class SuspectFiles(NamedTuple):
    """A suspect ready to be read: `candidate` lies below `root`; `row` says all that is known of it so far.

    `outside` is why an adapter is not read on the base: nothing declares that it belongs there. Its file is read alone.
    """

    candidate: Candidate
    root: Path
    row: ScanRow
    outside: AIAOError | None = None


@dataclass(frozen=True)
class Question:
    """What every suspect of a scan is asked.

    Args:
        key, record: of the mark. plan (`ReadingPlan`): by which each is read, with the alpha of one suspect.
    """

    key: WatermarkKey
    record: WatermarkRecord
    plan: ReadingPlan

    @property
    def asks_lineage(self) -> bool:
        """Whether adapters are asked on which model they were trained: the mark has a lineage carrier."""
        return self.record.lineage is not None

    @property
    def reads_base(self) -> bool:
        """Whether adapters are read on the base too: the mark is more than a lineage carrier."""
        return self.record.lineage is None or not self.record.lineage["only"]


class Judge:
    """Reads suspects on the resident denoiser, adapters before by their files alone; identical ones are read once."""

    def __init__(self, base: Resident, question: Question) -> None:
        self.base, self.question = base, question
        self._seen: dict[str | tuple[str, ...], ScanRow] = {}
        self._lineages: dict[str | tuple[str, ...], ScanRow] = {}
        # Not the base's own: which sites there are was committed to, and what lies in a repository may change.
        self._blank = blank_of(question.record)

    def remember(self, row: ScanRow) -> None:
        """A reading that copies share, by the hash of tensors and by those of files."""
        if row.copy_of is not None:
            return
        for key in (row.digest, row.file_key):
            if key and row.log10_p is not None:
                self._seen.setdefault(key, row)
            if key and row.lineage_reading is not None:
                self._lineages.setdefault(key, row)

    def knows(self, row: ScanRow, *, outside: bool = False) -> bool:
        """Whether files with the hashes of this row's were asked before all that it is to be asked."""
        key = row.file_key
        read = outside or key in self._seen
        traced = key in self._lineages or row.kind != "lora" or not self.question.asks_lineage
        return bool(key) and read and traced

    def read(self, suspect: SuspectFiles) -> ScanRow:
        """The suspect's row with its verdict; whatever goes wrong is its reason."""
        started, row = time.monotonic(), suspect.row
        try:
            row = self._trace(suspect)  # first: it takes no forward, and stands whatever comes of the rest
            if suspect.outside is not None:
                raise suspect.outside
            row = self._read(suspect._replace(row=row))
        except Exception as error:  # loading a stranger's file may fail in ways nobody listed, and the scan goes on
            row = self.refuse(row, error)
        self.remember(row)
        return replace(row, seconds={**row.seconds, "read": time.monotonic() - started})

    def refuse(self, row: ScanRow, error: Exception) -> ScanRow:
        """The row of a suspect that cannot answer; of an adapter that could not be opened, neither question."""
        row = refuse(row, error)
        if not (self.question.asks_lineage and row.kind == "lora" and row.settled and row.lineage_reading is None):
            return row
        return replace(row, lineage_reading={"verdict": "not_testable", "log10_p": None, "reason": row.reason})

    def _trace(self, suspect: SuspectFiles) -> ScanRow:
        """The row with what an adapter's file alone says of the model that it was trained on."""
        candidate, root, row = suspect.candidate, suspect.root, suspect.row
        if candidate.kind != "lora" or self._blank is None:
            return row
        if row.file_key in self._lineages:
            return _traced_as(self._lineages[row.file_key], row, suspect.outside is not None)
        ask, started, found = self.question, time.monotonic(), detect(root / candidate.path)
        terms: dict[str, Any] = {"alpha": ask.plan.alpha, "factor": ask.plan.commitments}
        reading = read_lineage(found, ask.record.drawn(ask.key), self._blank, **terms)
        digest = None if reading.sha256 is None else adapter_digest(found, reading.sha256)
        row = replace(row, seconds={**row.seconds, "lineage": time.monotonic() - started}, digest=digest)
        if digest in self._lineages:
            return _traced_as(self._lineages[digest], row, suspect.outside is not None)
        warnings = (*row.warnings, *map(_printable, reading.warnings))
        return replace(row, lineage_reading=summarise(reading.to_dict()), warnings=warnings)

    def _read(self, suspect: SuspectFiles) -> ScanRow:
        candidate, root, row, _ = suspect
        if row.file_key and row.file_key in self._seen:
            twin = self._seen[row.file_key]
            return _copy_of(twin, row, 0.0 if twin.digest == self.base.sha256 else twin.distance)
        ask = self.question
        with place_on_base(candidate, root, row.label, self.base) as put:
            if put.digest in self._seen:
                return _copy_of(self._seen[put.digest], replace(row, digest=put.digest), put.distance)
            started = time.monotonic()
            report = verify(put.opened, ask.key, record=ask.record, plan=ask.plan)
            seconds = {**row.seconds, "denoiser": time.monotonic() - started}
        warnings = [*row.warnings, *(text for text in report.warnings if text not in row.warnings)]
        if candidate.kind == "lora" and len(row.lineage) > 1:
            warnings.append(f"declared for {row.lineage[-1]}, read on {row.lineage[0]}")
        return replace(
            row,
            verdict=report.verdict,
            reason=report.reason,
            log10_p=report.log10_p,
            bit_accuracy=report.bit_accuracy,
            denoiser_evals=report.denoiser_evals,
            distance=put.distance,
            digest=put.digest,
            seconds=seconds,
            warnings=tuple(warnings),
            lineage_reading=row.lineage_reading
            if report.asks_lineage or not report.lineage
            else summarise(report.lineage),
        )


def refuse(row: ScanRow, error: Exception) -> ScanRow:
    """The row of a suspect that cannot answer, with the reason."""
    kind = next((words for cls, words in _KINDS if isinstance(error, cls)), None)
    if not isinstance(error, AIAOError):
        kind = f"unexpected {type(error).__name__}"
    reason = " ".join((f"{kind}: {error}" if kind else str(error)).split())
    settled = isinstance(error, AIAOError) and not isinstance(error, HubError | BudgetSpentError)
    return replace(row, verdict="not_testable", reason=_printable(reason), settled=settled)


def _printable(text: str, limit: int = 400) -> str:
    """Text of a stranger for logs and terminals: no control characters, and not endless."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])


def summarise(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Of a report's `lineage` what a row keeps."""
    told = {name: lineage[name] for name in ("kind", "verdict", "log10_p", "share")}
    return {**told, "reason": _printable(lineage["reason"]) or None, "sites": len(lineage["sites"])}


def _traced_as(twin: ScanRow, row: ScanRow, alone: bool) -> ScanRow:
    """A row with its twin's lineage; one that nothing else is asked of is named as a copy here."""
    copied = replace(row, lineage_reading=twin.lineage_reading, digest=twin.digest)
    return replace(copied, copy_of=twin.label) if alone and twin.label != row.label else copied


def _copy_of(twin: ScanRow, row: ScanRow, distance: float | None) -> ScanRow:
    """A row with its twin's reading: the tensors are identical, so a forward would say the same."""
    return replace(
        row,
        verdict=twin.verdict,
        log10_p=twin.log10_p,
        bit_accuracy=twin.bit_accuracy,
        distance=distance,
        copy_of=twin.label if twin.label != row.label else None,  # an earlier commit of itself is no other suspect
        digest=twin.digest,
        lineage_reading=row.lineage_reading or twin.lineage_reading,
    )
