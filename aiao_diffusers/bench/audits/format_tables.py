"""What `aiao bench formats` measured, as Markdown: the whole table, and the page of supported files."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ResultsError
from ...files.text import markdown_table
from .format_files import REFUSED


COLUMNS = (
    *("format", "detected", "loads", "modules", "oracle", "oracle error"),
    *("on the marked model", "on the clean model", "s", "peak MiB"),
)
PAGE = """# Supported files

This page is generated: `aiao bench formats --result docs/formats.json --page` prints it from the result of `aiao bench formats`,
and so does a new measurement with `--page`. The rules by which files are judged are in [formats.md](formats.md).

Each row is one input, written on the shipped marked model and, as its control, on the clean model. Every fine-tune is the same
change: the example's LoRA with three convolutions added. A row of another library's method (OFT, BOFT, GLoRA of peft, VeRA) is a
change of its own.

- *Read as*: the kind that `verify` finds, before it reads a weight.
- *Error*: how far the loaded model's noise prediction lies from the oracle's, as a share of the change's own effect. 1 would be a
  fine-tune that did not load.
- *Oracle*: who says what the weights are. `diffusers` and `peft` loaded the same input themselves, `gguf` unpacked the same
  numbers, `patched` are weights changed by hand; against those, storage in few bits is an error too.
- *Marked* and *clean*: the verdict, in brackets log10 p. What the mark survives is in [robustness.md](robustness.md).
- *s* and *MiB*: time and growth of memory while the file is loaded; verification comes on top. The machine had other work, so that
  times are larger than they need be.
"""
REFUSALS = """Of these there is no verdict on a mark: the answer is `not_testable` or a typed error, with the reason that is shown. `FOLDER` stands
for the place of the input. Exit codes are in the [README](../README.md#on-the-command-line).
"""


@dataclass(frozen=True)
class Row:
    """One format.

    Args:
        format: its name. group: its heading. kind: as detected. loads: whether a denoiser came of it. refusal: the reason where none did.
        modules, delta_norm: what an adapter changed.
        oracle: who says what the weights are: `patched` by hand, or a library that loads or unpacks the same input.
        oracle_error: largest difference of the noise prediction from the oracle's, as a share of the largest difference that
            the change makes; 1 would be an adapter that did not load.
        marked, clean: verdict on the marked and on the clean model with this file, with log10 p.
        seconds, peak_mib: of loading it. peak_ratio: peak_mib over the denoiser's size as float32; None where the
            system does not tell. as_expected: kind, error and both verdicts are those that the format stands for.
    """

    format: str
    group: str
    kind: str
    loads: bool
    refusal: str | None
    modules: int | None
    delta_norm: float | None
    oracle: str | None
    oracle_error: float | None
    marked: str
    marked_log10_p: float | None
    clean: str
    clean_log10_p: float | None
    seconds: float
    peak_mib: float | None
    peak_ratio: float | None
    as_expected: bool


def read(path: Path) -> list[Row]:
    """Rows that `aiao bench formats -o` wrote.

    Raises:
        ResultsError: no such file, or another kind of result.
    """
    try:
        rows = [Row(**row) for row in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise ResultsError(f"'{path}' holds no result of `aiao bench formats` ({error}).") from error
    return rows


def _verdicts(row: Row) -> tuple[str, str]:
    marked, clean = (
        verdict if log10_p is None else f"{verdict} ({log10_p:.1f})"
        for verdict, log10_p in ((row.marked, row.marked_log10_p), (row.clean, row.clean_log10_p))
    )
    return marked, clean


def _error(row: Row) -> str:
    return "" if row.oracle_error is None else f"{row.oracle_error:.1e}"


def _peak(row: Row) -> str:
    return "" if row.peak_mib is None else f"{row.peak_mib:.0f}"


def table(rows: Iterable[Row]) -> str:
    """Rows as a Markdown table."""
    lines = []
    for row in rows:
        told = (row.format, row.kind, "yes" if row.loads else "no", str(row.modules or ""), row.oracle or "")
        lines.append((*told, _error(row), *_verdicts(row), f"{row.seconds:.2f}", _peak(row)))
    return markdown_table(COLUMNS, lines) + "\n"


def page(rows: Sequence[Row]) -> str:
    """Rows as the page of supported files."""
    parts = [PAGE]
    for group in dict.fromkeys(row.group for row in rows):
        own = [row for row in rows if row.group == group]
        parts.append(f"## {group}\n" + (f"{REFUSALS}\n" if group == REFUSED else "") + _section(own, group == REFUSED))
    odd = [row.format for row in rows if not row.as_expected]
    parts.append(
        f"{len(rows) - len(odd)} of {len(rows)} rows are as expected{': not ' + ', '.join(odd) if odd else ''}.\n"
    )
    return "\n".join(parts)


def _section(rows: Iterable[Row], refused: bool) -> str:
    if refused:
        cells = ((row.format, row.kind, row.marked, (row.refusal or "").replace("|", "\\|")) for row in rows)
        return markdown_table(("input", "read as", "answer", "reason"), cells) + "\n"
    columns = ("input", "read as", "error", "oracle", "marked", "clean", "s", "MiB")
    lines = (
        (row.format, row.kind, _error(row), row.oracle or "", *_verdicts(row), f"{row.seconds:.2f}", _peak(row))
        for row in rows
    )
    return markdown_table(columns, lines) + "\n"


def memory_table(rows: Iterable[tuple[str, float, float | None, float]]) -> str:
    """What `memory` returns as a Markdown table."""
    cells = (
        (name, f"{size:.0f}", "" if ratio is None else f"{ratio:.2f}", f"{seconds:.1f}")
        for name, size, ratio, seconds in rows
    )
    return markdown_table(("format", "denoiser MiB", "peak over it", "s"), cells) + "\n"
