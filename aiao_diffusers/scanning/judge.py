"""Reading suspects one after another on the resident denoiser, and the rows of those that cannot be read."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ..errors import (
    AIAOError,
    BudgetSpentError,
    HubError,
    LoraNotLoadedError,
    UnsafeFileError,
    WrongBaseError,
)
from ..hub.candidates import Candidate
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from ..verification.plan import ReadingPlan
from ..verification.verify import verify
from .log import ScanRow
from .resident import Resident, place_on_base


_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (UnsafeFileError, "unsafe format"),
    (WrongBaseError, "other architecture"),
    (LoraNotLoadedError, "changes no denoiser of this kind"),
    (HubError, "out of reach"),
)


class SuspectFiles(NamedTuple):
    """A suspect ready to be read: `candidate` lies below `root`; `row` says all that is known of it so far."""

    candidate: Candidate
    root: Path
    row: ScanRow


@dataclass(frozen=True)
class Question:
    """What every suspect of a scan is asked.

    Args:
        key, record: of the mark. plan (`ReadingPlan`): by which each is read, with the alpha of one suspect.
    """

    key: WatermarkKey
    record: WatermarkRecord
    plan: ReadingPlan


class Judge:
    """Reads suspects on the resident denoiser; identical ones are read once."""

    def __init__(self, base: Resident, question: Question) -> None:
        self.base, self.question = base, question
        self._seen: dict[str | tuple[str, ...], ScanRow] = {}

    def remember(self, row: ScanRow) -> None:
        """A reading that copies share, by the hash of tensors and by those of files."""
        if row.log10_p is not None and row.copy_of is None:
            for key in (row.digest, row.file_key):
                if key:
                    self._seen.setdefault(key, row)

    def knows(self, key: tuple[str, ...]) -> bool:
        """Whether files with these hashes were read already."""
        return bool(key) and key in self._seen

    def read(self, suspect: SuspectFiles) -> ScanRow:
        """The suspect's row with its verdict; whatever goes wrong is its reason."""
        started, row = time.monotonic(), suspect.row
        try:
            row = self._read(suspect)
        except Exception as error:  # loading a stranger's file may fail in ways nobody listed, and the scan goes on
            row = refuse(row, error)
        return replace(row, seconds={**row.seconds, "read": time.monotonic() - started})

    def _read(self, suspect: SuspectFiles) -> ScanRow:
        candidate, root, row = suspect
        if self.knows(row.file_key):
            twin = self._seen[row.file_key]
            return _copy_of(twin, row, 0.0 if twin.digest == self.base.sha256 else twin.distance)
        ask = self.question
        with place_on_base(candidate, root, row.label, self.base) as put:
            if put.digest in self._seen:
                return _copy_of(self._seen[put.digest], replace(row, digest=put.digest), put.distance)
            started = time.monotonic()
            report = verify(put.opened, ask.key, record=ask.record, plan=ask.plan)
            seconds = {**row.seconds, "denoiser": time.monotonic() - started}
        warnings = [*row.warnings, *report.warnings]
        if candidate.kind == "lora" and len(row.lineage) > 1:
            warnings.append(f"declared for {row.lineage[-1]}, read on {row.lineage[0]}")
        row = replace(
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
        )
        self.remember(row)
        return row


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
    )
