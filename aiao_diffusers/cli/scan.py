"""`aiao scan`."""

from collections import Counter, deque
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub.utils import disable_progress_bars, logging
from rich.table import Table
from rich.text import Text

from ..hub.model_tree import LIMIT, RELATIONS
from ..mark.key import WatermarkKey
from ..scanning.log import ScanRow
from ..scanning.scan import scan as run
from ._output import out


SHOWN = 12  # latest suspects in the live table


class _Live:
    """What the table on stderr shows while a scan runs."""

    def __init__(self, base: str) -> None:
        self.base, self.done, self.total = base, 0, 0
        self.counts: Counter[str] = Counter()
        self.latest: deque[ScanRow] = deque(maxlen=SHOWN)

    def add(self, rows: tuple[ScanRow, ...], done: int, total: int) -> None:
        self.done, self.total = done, total
        self.counts.update(row.verdict for row in rows)
        self.latest.extend(rows)

    def table(self) -> Table:
        counts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(self.counts.items()))
        title = f"{self.base}: {self.done} of {self.total or '?'} repositories; {counts or 'loading the base'}"
        table = Table("suspect", "verdict", "log10 p", "distance", "note", title=Text(title), expand=True)
        for row in self.latest:
            p = "" if row.log10_p is None else f"{row.log10_p:.1f}"
            distance = "" if row.distance is None else f"{row.distance:.4f}"
            note = row.reason or (f"copy of {row.copy_of}" if row.copy_of else "")
            # As Text, for a stranger's words may look like markup.
            table.add_row(
                *(
                    Text(cell, overflow="ellipsis", no_wrap=True)
                    for cell in (row.label, row.verdict, p, distance, note)
                )
            )
        return table


def scan(
    repo: Annotated[str, typer.Argument(help="Repository of the marked model.")],
    key: Annotated[Path, typer.Option(help="Key file.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of log and reports; a second call goes on from it.")
    ] = Path("aiao-scan"),
    record: Annotated[str | None, typer.Option(help="Folder with the watermark record, if not in REPO.")] = None,
    include: Annotated[list[str] | None, typer.Option("--repo", help="A repository to include; repeatable.")] = None,
    author: Annotated[list[str] | None, typer.Option(help="Include an author's models; repeatable.")] = None,
    search: Annotated[list[str] | None, typer.Option(help="Include what a search finds; repeatable.")] = None,
    relation: Annotated[
        list[str] | None, typer.Option(help=f"Of the tree only these: {', '.join(RELATIONS)}; repeatable.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only what was modified on or after this ISO date.")] = None,
    alpha: Annotated[float, typer.Option(help="Chance of even one false 'verified' in the scan.")] = 1e-6,
    trials: Annotated[int, typer.Option(help="Monte Carlo trials a look, at most.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the trials.")] = 0,
    workers: Annotated[int, typer.Option(help="Downloads at a time, ahead of verification.")] = 4,
    max_gb: Annotated[float | None, typer.Option(help="Gigabytes to download at most.")] = None,
    limit: Annotated[int, typer.Option(help="Repositories at most.")] = LIMIT,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Who carries the mark? Walks the model tree of REPO and reads every suspect that fits."""
    secret, live = WatermarkKey.load(key), _Live(repo)
    # The client's own bars and warnings would tear the live table; a retry that fails ends in a row.
    disable_progress_bars()
    logging.set_verbosity_error()
    with out.live(live.table):
        report = run(
            repo,
            secret,
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
            workers=workers,
            max_gb=max_gb,
            limit=limit,
            callback=live.add,
        )
    if as_json:
        out.json(report.to_dict())
        return
    columns = ["suspect", "verdict", "log10 p", "Holm", "distance", "proves"]
    picked = [0, 2, 3, 4, 6, 8]
    shown = [row for row in report.sorted_rows if row.log10_p is not None]
    cells = [report.cells(row) for row in shown]
    out.table(f"Who carries the mark of {repo}?", columns, [[row[i] for i in picked] for row in cells])
    for text in report.warnings:
        out.note(f"warning: {text}")
    out.note(f"{report.counts}; report with all suspects and reasons: {output / 'report.md'}")
