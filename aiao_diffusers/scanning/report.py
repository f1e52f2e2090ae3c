"""The outcome of a scan: one row a suspect, an append-only log that survives any stop, and the report sorted by p.

A scan asks many questions, and each `verified` accuses somebody. So the verdicts of the report are family-wise: by Holm's
adjustment the chance of even one false `verified` in the whole scan is at most alpha, however the tests depend on each
other (they share key and probe bank). Benjamini-Hochberg would bound the share of false ones instead, and needs an
assumption on their dependence.
"""

import csv
import html
import io
import json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..stats.multiple import holm
from .log import ScanRow


COLUMNS = (
    *("suspect", "file", "verdict", "log10 p", "Holm", "bits", "distance", "relation", "proves"),
    *("copy of", "commit", "found by", "note"),
)


@dataclass(frozen=True)
class ScanReport:
    """Who carries the mark.

    Args:
        base (`str`), commit (`str`): the scanned base. owner, commitment: of the key. alpha (`float`): family-wise.
        base_log10_p (`float`): the positive control: the base's own reading.
        rows: every suspect once. warnings: what may be missing. statistics: seconds and bytes of this run.
    """

    base: str
    commit: str
    owner: str
    commitment: str
    alpha: float
    base_log10_p: float
    rows: tuple[ScanRow, ...]
    warnings: tuple[str, ...] = ()
    statistics: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def adjusted(self) -> dict[str, float]:
        """Label to Holm-adjusted log10 p; a suspect and its copies are one test."""
        # By digest, not by name: the repository that a copy was first seen in may hold something else by now.
        readings = {row.digest or row.label: row.log10_p for row in self.rows if row.log10_p is not None}
        values = dict(zip(readings, holm(list(readings.values())), strict=True))
        return {row.label: values[row.digest or row.label] for row in self.rows if row.log10_p is not None}

    def verdict_of(self, row: ScanRow) -> str:
        """The verdict corrected for the whole scan."""
        if row.log10_p is None:
            return row.verdict
        return "verified" if self.adjusted[row.label] <= math.log10(self.alpha) else "not_verified"

    def proves(self, row: ScanRow) -> str:
        """`descent`, `carries` or `nothing`, by the corrected verdict; keys of `report.PROVES`."""
        if self.verdict_of(row) != "verified":
            return "nothing"
        return "carries" if row.kind == "lora" else "descent"

    @property
    def sorted_rows(self) -> list[ScanRow]:
        """By p, smallest first; those without one last, by name."""
        return sorted(self.rows, key=lambda r: (r.log10_p is None, r.log10_p or 0.0, r.label))

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by corrected verdict."""
        found = Counter(self.verdict_of(row) for row in self.rows)
        return {verdict: found.get(verdict, 0) for verdict in ("verified", "not_verified", "not_testable")}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, `counts`, and in each row the corrected `verdict`, `log10_p_holm` and `proves`."""
        rows = [
            {
                **asdict(row),
                "verdict": self.verdict_of(row),
                "log10_p_holm": self.adjusted.get(row.label),
                "proves": self.proves(row),
            }
            for row in self.sorted_rows
        ]
        fields = {k: v for k, v in vars(self).items() if k not in ("rows", "adjusted")}
        return json.loads(json.dumps({**fields, "counts": self.counts, "correction": "Holm", "rows": rows}))

    def cells(self, row: ScanRow) -> list[str]:
        """A row as text, in the order of `COLUMNS`."""

        def number(value: float | None, digits: int) -> str:
            return "" if value is None else f"{value:.{digits}f}"

        note = "; ".join([*([row.reason] if row.reason else []), *row.warnings])
        return [
            *(row.repo, row.file, self.verdict_of(row), number(row.log10_p, 1)),
            *(number(self.adjusted.get(row.label), 1), number(row.bit_accuracy, 3), number(row.distance, 4)),
            *(row.relation or "", self.proves(row), row.copy_of or "", (row.commit or "")[:12], row.found_by, note),
        ]

    @property
    def heading(self) -> list[str]:
        """What the tables need to be read, as sentences."""
        counts = ", ".join(f"{number} {verdict}" for verdict, number in self.counts.items())
        return [
            f"Base {self.base} at commit {self.commit}; key of {self.owner}, commitment {self.commitment}.",
            f"{len(self.rows)} suspects: {counts}. The base itself reads log10 p = {self.base_log10_p:.1f}.",
            f"Verdicts by Holm's adjustment: at most {self.alpha:g} is the chance of even one false `verified` in this "
            "scan, for each accuses somebody and the tests share key and probes.",
            "`descent`: the suspect's own weights carry the mark. `carries`: an adapter, read on the scanned base; whoever "
            "runs it there runs marked weights, which does not prove on which twin it was trained. Bases are self-declared.",
            "`not_verified` is no proof of independence. Distance: weight change over the base's weights, in norms.",
            *(f"Warning: {text}" for text in self.warnings),
        ]

    def to_markdown(self) -> str:
        """The report for people."""
        lines = [f"# Who carries the mark of {_markdown(self.base)}?", ""]
        lines += [text for sentence in self.heading for text in (_markdown(sentence), "")]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(_markdown(cell) for cell in self.cells(row)) + " |" for row in self.sorted_rows]
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """The same as one page without scripts or links; all text of suspects is escaped."""

        def line(tag: str, cells: list[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        head = f"<title>{html.escape(f'Who carries the mark of {self.base}?')}</title>"
        style = "<style>body{font:14px sans-serif}td,th{padding:2px 8px;text-align:left;vertical-align:top}</style>"
        text = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.heading)
        rows = "\n".join(line("td", self.cells(row)) for row in self.sorted_rows)
        body = f"{text}<table>\n{line('th', list(COLUMNS))}\n{rows}\n</table>"
        return f'<!doctype html><html lang="en"><meta charset="utf-8">{head}{style}<body>{body}</body></html>\n'

    def to_csv(self) -> str:
        """The table; a cell that a spreadsheet would run as a formula is quoted."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.sorted_rows:
            writer.writerow([_cell(text) for text in self.cells(row)])
        return file.getvalue()

    def save(self, folder: Path) -> None:
        """Write `report.md`, `report.html`, `report.csv` and `report.json`, each under a temporary name first."""
        texts = {"md": self.to_markdown(), "html": self.to_html(), "csv": self.to_csv()}
        for suffix, text in {**texts, "json": json.dumps(self.to_dict(), indent=1) + "\n"}.items():
            partial = folder / f".report.{suffix}.partial"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, folder / f"report.{suffix}")


def _markdown(text: str) -> str:
    """Text of a stranger within a table cell: neither markup nor a new cell."""
    text = html.escape(text, quote=False).replace("\\", "\\\\").replace("|", "\\|")
    return " ".join(text.replace("[", "\\[").replace("`", "'").split())


def _cell(text: str) -> str:
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
    return text
