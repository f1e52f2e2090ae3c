"""Curves from results: strength against log10 p, and what an attack costs against what it wins."""

import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from ...errors import ResultsError
from ...files.atomic import write_whole
from ...files.figure import new_figure
from ..registry import ATTACKS
from .tables import Rows, cells_of


def curves(rows: Rows, folder: str | Path) -> list[Path]:
    """Write `strength.png` and `cost.png`.

    Returns:
        the files written: none of the first kind where no attack was swept, none of the second without noise losses.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"no folder for curves at '{target}' ({error}): choose another name.") from error
    made = {"strength.png": _strength(cells_of(rows)), "cost.png": _cost(cells_of(rows))}
    written = []
    for name, figure in made.items():
        if figure is not None:
            with write_whole(target / name) as partial:
                figure.savefig(partial, dpi=110, format="png", metadata={"Software": None})
            written.append(target / name)
    return written


def _sweeps(rows: Rows) -> dict[str, dict[str, dict[float, list[dict[str, Any]]]]]:
    """attack with its other settings -> mark -> strength -> rows; only sweeps of two strengths or more."""
    result: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        spec = ATTACKS.get(row["attack"])
        if spec is None or spec.strength is None or row.get("log10_p") is None:
            continue
        rest = [
            f"{n} {v:g}" if isinstance(v, float) else f"{n} {v}"
            for n, v in row["hyper"].items()
            if n != spec.strength and v != spec.hyper[n]
        ]
        label = f"{row['attack']}: {spec.strength}" + (f" ({', '.join(rest)})" if rest else "")
        result[label][_label(row, rows)][float(row["strength"])].append(row)
    return {k: v for k, v in result.items() if max(len(points) for points in v.values()) > 1}


def _label(row: dict[str, Any], rows: Rows) -> str:
    """The mark, and its model and data where there are several."""
    several = [name for name in ("model", "data") if len({other[name] for other in rows}) > 1]
    return ", ".join([row["mark"], *(row[name] for name in several)])


def _strength(rows: Rows) -> Any:
    sweeps = _sweeps(rows)
    if not sweeps:
        return None
    columns = min(3, len(sweeps))
    height = -(-len(sweeps) // columns)
    figure = new_figure(4 * columns, 3 * height)
    panels = figure.subplots(height, columns, squeeze=False).flatten()
    for axes, (label, marks) in zip(panels, sweeps.items(), strict=False):
        for number, (mark, points) in enumerate(marks.items()):
            colour, xs = f"C{number}", sorted(points)
            found = [[row["log10_p"] for row in points[x]] for x in xs]
            axes.plot(xs, [statistics.median(p) for p in found], "o-", color=colour, label=mark)
            axes.fill_between(xs, [min(p) for p in found], [max(p) for p in found], color=colour, alpha=0.2)
            base = [
                [c for row in points[x] if "controls" in row and (c := row["controls"]["base"]["log10_p"]) is not None]
                for x in xs
            ]
            axes.plot(xs, [min(p, default=math.nan) for p in base], ":", color=colour, label=f"{mark}: unmarked base")
        axes.axhline(math.log10(rows[0]["alpha"]), color="grey", linewidth=0.8)
        axes.set_title(label, fontsize=9)
        axes.set_ylabel("log10 p")
        axes.invert_yaxis()
    panels[0].legend(fontsize=7)
    for axes in panels[len(sweeps) :]:
        axes.set_axis_off()
    return figure


def _cost(rows: Rows) -> Any:
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        quality = row.get("quality") or {}
        if row.get("log10_p") is not None and quality.get("loss_owner") and row["attack"] != "none":
            points[_label(row, rows)].append((quality["loss_owner"] / quality["base_loss_owner"], row["log10_p"]))
    if not points:
        return None
    figure = new_figure(6, 4)
    axes = figure.subplots()
    for mark, pairs in points.items():
        axes.scatter([x for x, _ in pairs], [y for _, y in pairs], s=14, label=mark)
    axes.axhline(math.log10(rows[0]["alpha"]), color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("noise loss on the owner's data, in units of the unmarked base's")
    axes.set_ylabel("log10 p")
    axes.invert_yaxis()
    axes.legend(fontsize=7)
    return figure
