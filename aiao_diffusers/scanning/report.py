"""The report of a scan: every suspect sorted by p, as JSON, Markdown, HTML and CSV.

A scan asks many questions, and each `verified` accuses somebody. So the verdicts of the report are family-wise: by Holm's
adjustment the chance of even one false `verified` in the whole scan is at most alpha, however the tests depend on each
other (they share key and probe bank; adapters' files are read along the same directions). Benjamini-Hochberg would bound the
share of false ones instead, and needs an assumption on their dependence.

Where adapters are asked for their lineage too, one Holm goes over the tests of both questions: a `verified` accuses whichever
question it answers, and what verifies at one no longer costs the other, as it would by a factor of 2 on two Holms.
"""

import csv
import html
import io
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..files.atomic import write_text
from ..files.html import render_html
from ..files.text import markdown_table
from ..stats.multiple import holm
from ..verification.claims import PROVES, WEIGHTS
from .log import ScanRow


class Cells(NamedTuple):
    """A row of the report's tables, as text."""

    suspect: str
    file: str
    verdict: str
    log10_p: str
    holm: str
    bits: str
    distance: str
    relation: str
    proves: str
    lineage: str
    lineage_log10_p: str
    lineage_holm: str
    copy_of: str
    commit: str
    found_by: str
    note: str


_LINEAGE = ("lineage", "lineage_log10_p", "lineage_holm")
"""Cells that only a scan for lineage has."""


_CACHED = ("_family", "adjusted", "lineage_adjusted")
_PLANS = {
    "fast": "Read by the fast plan: a reading ends where four trials show nothing. A mark that an attack has worn down may show "
    "in later looks, which a scan with --thorough takes.",
    "thorough": "Read by the thorough plan: every look at every suspect.",
}


@dataclass(frozen=True)
class ScanReport:
    """Who carries the mark.

    Args:
        base (`str`), commit (`str`): the scanned base. owner, commitment: of the key. alpha (`float`): family-wise.
        base_log10_p (`float`): the positive control: the base's own reading.
        rows: every suspect once. warnings: what may be missing. statistics: seconds and bytes of this run.
        carrier_alone (`bool`): the mark is a lineage carrier and nothing else, so a whole model's verdict is on its weights' directions.
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
    carrier_alone: bool = False

    @cached_property
    def _family(self) -> dict[tuple[str, str], float]:
        """Question and test to Holm-adjusted log10 p, over all tests of the scan; a suspect and its copies are one test."""
        # By digest, not by name: the repository that a copy was first seen in may hold something else by now.
        readings = {("mark", row.digest or row.label): row.log10_p for row in self.rows if row.log10_p is not None}
        readings |= {("lineage", row.digest or row.label): p for row in self.rows if (p := lineage_p(row)) is not None}
        return dict(zip(readings, holm(list(readings.values())), strict=True))

    @cached_property
    def adjusted(self) -> dict[str, float]:
        """Label to Holm-adjusted log10 p of the mark."""
        found = (row for row in self.rows if row.log10_p is not None)
        return {row.label: self._family["mark", row.digest or row.label] for row in found}

    @cached_property
    def lineage_adjusted(self) -> dict[str, float]:
        """The same of the lineage."""
        found = (row for row in self.rows if lineage_p(row) is not None)
        return {row.label: self._family["lineage", row.digest or row.label] for row in found}

    @property
    def asks_lineage(self) -> bool:
        """Whether adapters were asked on which model they were trained, and models whether they hold the directions."""
        return any(row.lineage_reading is not None for row in self.rows)

    def verdict_of(self, row: ScanRow) -> str:
        """The verdict corrected for the whole scan."""
        if row.log10_p is None:
            return row.verdict
        return self._verdict(self._family["mark", row.digest or row.label])

    def lineage_verdict_of(self, row: ScanRow) -> str | None:
        """The same of the lineage; None where it was not asked."""
        if row.lineage_reading is None or lineage_p(row) is None:
            return None if row.lineage_reading is None else "not_testable"
        return self._verdict(self._family["lineage", row.digest or row.label])

    def _verdict(self, adjusted: float) -> str:
        return "verified" if adjusted <= math.log10(self.alpha) else "not_verified"

    def proves(self, row: ScanRow) -> str:
        """`descent`, `carries`, `lineage in weights` or `nothing`, by the corrected verdict; keys of `claims.PROVES`."""
        if self.verdict_of(row) != "verified":
            return "nothing"
        if self.carrier_alone:
            return WEIGHTS
        return "carries" if row.kind == "lora" else "descent"

    @property
    def sorted_rows(self) -> list[ScanRow]:
        """By p of either question, smallest first; those without one last, by name."""

        def place(row: ScanRow) -> tuple[bool, float, str]:
            read = [p for p in (row.log10_p, lineage_p(row)) if p is not None]
            return not read, min(read, default=0.0), row.label

        return sorted(self.rows, key=place)

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by corrected verdict."""
        return _count(self.verdict_of(row) for row in self.rows)

    @property
    def lineage_counts(self) -> dict[str, int]:
        """The same of the lineage, of those that were asked."""
        return _count(filter(None, map(self.lineage_verdict_of, self.rows)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, `counts`, and in each row the corrected `verdict`, `log10_p_holm` and `proves`.

        Where adapters were asked for their lineage, `lineage_counts`, and the same corrections in each row's `lineage_reading`.
        """
        rows = [
            {
                **asdict(row),
                "verdict": self.verdict_of(row),
                "log10_p_holm": self.adjusted.get(row.label),
                "proves": self.proves(row),
                "lineage_reading": self._lineage_to_dict(row),
            }
            for row in self.sorted_rows
        ]
        told = {k: v for k, v in vars(self).items() if k not in ("rows", *_CACHED)} | {"counts": self.counts}
        told |= {"lineage_counts": self.lineage_counts} if self.asks_lineage else {}
        return json.loads(json.dumps({**told, "correction": "Holm", "rows": rows}))

    def _lineage_to_dict(self, row: ScanRow) -> dict[str, Any] | None:
        if row.lineage_reading is None:
            return None
        corrected = {"verdict": self.lineage_verdict_of(row), "log10_p_holm": self.lineage_adjusted.get(row.label)}
        return {**row.lineage_reading, **corrected}

    def cells(self, row: ScanRow) -> Cells:
        """A row as text."""

        def number(value: float | None, digits: int) -> str:
            return "" if value is None else f"{value:.{digits}f}"

        lineage = row.lineage_reading or {}
        why = lineage.get("reason")
        reasons = [row.reason, f"lineage: {why}" if why and why != row.reason else None]
        note = "; ".join([*filter(None, reasons), *row.warnings])
        return Cells(
            suspect=row.repo,
            file=row.file,
            verdict=self.verdict_of(row),
            log10_p=number(row.log10_p, 1),
            holm=number(self.adjusted.get(row.label), 1),
            bits=number(row.bit_accuracy, 3),
            distance=number(row.distance, 4),
            relation=row.relation or "",
            proves=self.proves(row),
            lineage=self.lineage_verdict_of(row) or "",
            lineage_log10_p=number(lineage_p(row), 1),
            lineage_holm=number(self.lineage_adjusted.get(row.label), 1),
            copy_of=row.copy_of or "",
            commit=(row.commit or "")[:12],
            found_by=row.found_by,
            note=note,
        )

    @property
    def _shown(self) -> list[str]:
        return [name for name in Cells._fields if self.asks_lineage or name not in _LINEAGE]

    @property
    def columns(self) -> tuple[str, ...]:
        """Of `table`."""
        return tuple(name.replace("_", " ").replace("holm", "Holm") for name in self._shown)

    @property
    def table(self) -> list[tuple[str, ...]]:
        """`cells` of `sorted_rows`, those that this scan has."""
        cells = map(self.cells, self.sorted_rows)
        return [tuple(getattr(row, name) for name in self._shown) for row in cells]

    @property
    def title(self) -> str:
        """What the scan asked."""
        return f"Who carries the mark of {self.base}?"

    @property
    def heading(self) -> list[str]:
        """What the tables need to be read, as sentences."""
        counts = ", ".join(f"{number} {verdict}" for verdict, number in self.counts.items())
        return [
            f"Base {self.base} at commit {self.commit}; key of {self.owner}, commitment {self.commitment}.",
            f"{len(self.rows)} suspects: {counts}. The base itself reads log10 p = {self.base_log10_p:.1f}.",
            f"Verdicts by Holm's adjustment: at most {self.alpha:g} is the chance of even one false `verified` in this "
            "scan, for each accuses somebody and the tests share key and probes.",
            f"`{WEIGHTS}`: {PROVES[WEIGHTS]}"
            if self.carrier_alone
            else "`descent`: the suspect's own weights carry the mark. `carries`: an adapter, read on the scanned base; whoever "
            "runs it there runs marked weights, which does not prove on which twin it was trained. Bases are self-declared.",
            *(self._lineage_heading if self.asks_lineage else []),
            *([_PLANS[str(plan)]] if (plan := self.statistics.get("plan")) in _PLANS else []),
            "`not_verified` is no proof of independence. Distance: weight change over the base's weights, in norms.",
            *(f"Warning: {text}" for text in self.warnings),
        ]

    @property
    def _lineage_heading(self) -> list[str]:
        counts = ", ".join(f"{number} {verdict}" for verdict, number in self.lineage_counts.items())
        if self.carrier_alone:
            return [
                "Two questions, one Holm over both, neither with a forward. `verdict`, `log10 p` and `Holm`: do a whole model's weights "
                "hold the mark's directions? The columns of `lineage`: was an adapter's file trained on a model that carries the mark, "
                f"or made with knowledge of it? {counts}.",
            ]
        return [
            "Two questions, one Holm over both. `verdict`, `log10 p` and `Holm`: does what runs carry the mark? The columns of "
            "`lineage`: of an adapter, was its file trained on a model that carries the mark, or made with knowledge of it? Of a whole "
            "model, do its weights hold the mark's directions, by descent or by knowledge of them? That takes no base and no forward: "
            f"{counts}.",
        ]

    def to_markdown(self) -> str:
        """The report for people."""
        lines = [f"# {_markdown(self.title)}", ""]
        lines += [text for sentence in self.heading for text in (_markdown(sentence), "")]
        lines.append(markdown_table(self.columns, (map(_markdown, cells) for cells in self.table)))
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """The same as one page without scripts or links; all text of suspects is escaped."""
        values = {"title": self.title, "heading": self.heading, "columns": self.columns, "rows": self.table}
        return str(render_html("scanning/report.html.jinja", **values))

    def to_csv(self) -> str:
        """The table; a cell that a spreadsheet would run as a formula is quoted."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        for cells in self.table:
            writer.writerow([_cell(text) for text in cells])
        return file.getvalue()

    def save(self, folder: Path) -> None:
        """Write `report.md`, `report.html`, `report.csv` and `report.json`, each under a temporary name first."""
        texts = {"md": self.to_markdown(), "html": self.to_html(), "csv": self.to_csv()}
        for suffix, text in {**texts, "json": json.dumps(self.to_dict(), indent=1) + "\n"}.items():
            write_text(folder / f"report.{suffix}", text)


def lineage_p(row: ScanRow) -> float | None:
    """log10 p of an adapter's lineage, as read; None where it was not asked or cannot be told."""
    return None if row.lineage_reading is None else row.lineage_reading.get("log10_p")


def _count(verdicts: Iterable[str]) -> dict[str, int]:
    found = Counter(verdicts)
    return {verdict: found.get(verdict, 0) for verdict in ("verified", "not_verified", "not_testable")}


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
