"""`aiao scan`."""

import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._options import AsJson, Quiet
from ._output import out
from ._progress import live


if TYPE_CHECKING:
    from rich.table import Table

    from ..scanning.log import ScanRow
    from ..scanning.report import ScanReport

RELATIONS = ("adapter", "finetune", "merge", "quantized")  # those of `hub.model_tree`, which takes long to import
SHOWN = 12  # latest suspects in the live table

Output = Annotated[
    Path, typer.Option("-o", "--output", help="Folder of log and reports; a second call goes on from it.")
]
Record = Annotated[str | None, typer.Option(help="Folder with the watermark record, if not in REPO.")]
Repos = Annotated[list[str] | None, typer.Option("--repo", help="A repository to include; repeatable.")]
Authors = Annotated[list[str] | None, typer.Option(help="Include an author's models; repeatable.")]
Searches = Annotated[list[str] | None, typer.Option(help="Include what a search finds; repeatable.")]
Relations = Annotated[
    list[str] | None, typer.Option(help=f"Of the tree only these: {', '.join(RELATIONS)}; repeatable.")
]
Since = Annotated[str | None, typer.Option(help="Only what was modified on or after this ISO date.")]


class _Live:
    """What the table on stderr shows while a scan runs."""

    def __init__(self, base: str) -> None:
        self.base, self.done, self.total, self.started = base, 0, 0, time.monotonic()
        self.counts: Counter[str] = Counter()
        self.latest: deque[ScanRow] = deque(maxlen=SHOWN)

    def add(self, rows: "tuple[ScanRow, ...]", done: int, total: int) -> None:
        self.done, self.total = done, total
        self.counts.update(row.verdict for row in rows)
        self.latest.extend(rows)

    def table(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        counts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(self.counts.items()))
        title = f"{self.base}: {self.done} of {self.total or '?'} repositories; {counts or 'loading the base'}{self.left()}"
        lineage = any(row.lineage_reading is not None for row in self.latest)
        columns = ("suspect", "verdict", "log10 p", *(("lineage",) if lineage else ()), "distance", "note")
        table = Table(*columns, title=Text(title), expand=True)
        for row in self.latest:
            p = "" if row.log10_p is None else f"{row.log10_p:.1f}"
            distance = "" if row.distance is None else f"{row.distance:.4f}"
            note = row.reason or (f"copy of {row.copy_of}" if row.copy_of else "")
            cells = (row.label, row.verdict, p, *((_lineage_cell(row),) if lineage else ()), distance, note)
            # As Text, for a stranger's words may look like markup.
            table.add_row(*(Text(cell, overflow="ellipsis", no_wrap=True) for cell in cells))
        return table

    def left(self) -> str:
        """The time left, at the pace of the repositories so far."""
        if not 0 < self.done < self.total:
            return ""
        seconds = round((time.monotonic() - self.started) / self.done * (self.total - self.done))
        return f"; {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def _lineage_cell(row: "ScanRow") -> str:
    """Verdict and log10 p of an adapter's file alone."""
    told = row.lineage_reading or {"verdict": ""}
    p = told.get("log10_p")
    return str(told["verdict"]) if p is None else f"{told['verdict']} {p:.1f}"


def scan(
    repo: Annotated[str, typer.Argument(help="Repository of the marked model.")],
    key: Annotated[Path, typer.Option(help="Key file.")],
    output: Output = Path("aiao-scan"),
    record: Record = None,
    include: Repos = None,
    author: Authors = None,
    search: Searches = None,
    relation: Relations = None,
    since: Since = None,
    alpha: Annotated[float, typer.Option(help="Chance of even one false 'verified' in the scan.")] = 1e-6,
    trials: Annotated[int, typer.Option(help="Monte Carlo trials a look, at most.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the trials.")] = 0,
    thorough: Annotated[
        bool, typer.Option(help="Take every look at every suspect; the default ends hopeless readings.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Downloads at a time, ahead of verification.")] = 4,
    max_gb: Annotated[float | None, typer.Option(help="Gigabytes to download at most.")] = None,
    limit: Annotated[int, typer.Option(help="Repositories at most.")] = 10_000,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Who carries the mark? Walks the model tree of REPO and reads every suspect that fits."""
    seen = _Live(repo)
    with live(seen.table, quiet=quiet or as_json):
        from ..mark.key import WatermarkKey
        from ..scanning.scan import scan as run

        report = run(
            repo,
            WatermarkKey.load(key),
            output=output,
            record=record,
            repos=include or (),
            authors=author or (),
            search=search or (),
            relations=relation or RELATIONS,
            since=since,
            alpha=alpha,
            trials=trials,
            seed=seed,
            thorough=thorough,
            workers=workers,
            max_gb=max_gb,
            limit=limit,
            callback=seen.add,
        )
    if as_json:
        out.json(report.to_dict())
    else:
        _tell(report, repo, output)


def _tell(report: "ScanReport", repo: str, output: Path) -> None:
    """The suspects that could be read, and where to find all."""
    columns = ["suspect", "verdict", "log10 p", "Holm", "distance", "proves"]
    read = [cells for row in report.sorted_rows if (cells := report.cells(row)).log10_p or cells.lineage_log10_p]
    shown = [[c.suspect, c.verdict, c.log10_p, c.holm, c.distance, c.proves] for c in read]
    if report.asks_lineage:
        columns += ["lineage", "lineage log10 p", "lineage Holm"]
        shown = [[*row, c.lineage, c.lineage_log10_p, c.lineage_holm] for row, c in zip(shown, read, strict=True)]
    out.table(report.title, columns, shown)
    for text in report.warnings:
        out.note(f"warning: {text}")
    if report.asks_lineage:
        out.note(f"lineage, without a forward: {report.lineage_counts}")
    out.note(f"{report.counts}; report with all suspects and reasons: {output / 'report.md'}")
