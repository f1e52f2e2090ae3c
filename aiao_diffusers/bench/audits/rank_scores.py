"""Hits, rank scores, whitened ones and those beyond the clean twin on attacked models: `aiao bench ranks`.

Every row is one attack at one strength on the shipped model, read plainly with all trials; the first three
statistics look at the same readings, the last two at readings of their own; alpha not spent. Controls: the unmarked base, as it is and with
noise on its weights (beyond itself, the base answers nothing), and wrong keys' patterns on the readings of every attacked model.
"""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...denoiser.inputs import LatentData
from ...files.text import markdown_table
from ...mark.key import WatermarkKey
from ...mark.record import WatermarkRecord
from ...stats.multiple import clopper_pearson
from ...verification.evidence import Evidence, EvidenceReader, key_sites
from ...verification.plan import ReadingPlan, View
from ...verification.plan_run import Offers, PlanRun
from .. import attacks as _attacks  # noqa: F401 (fills the registry)
from ..context import AttackContext, open_pipe
from ..progress import Progress, log_progress
from ..registry import ATTACKS


SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {}),
    *(("prune", {"amount": amount}) for amount in (0.6, 0.7)),
    ("prune", {"amount": 0.3, "structured": True}),
    ("noise", {"std": 0.8}),
    *(("svd", {"keep": keep}) for keep in (0.5, 0.3)),
    ("reinit", {"block": "up_blocks.2"}),
    *(("merge", {"weight": weight}) for weight in (0.5, 0.3, 0.2, 0.1)),
)
COLUMNS = {
    "hits": "hits",
    "ranks": "ranks",
    "whitened": "whitened ranks",
    "beyond": "ranks beyond the twin",
    "beyond_whitened": "whitened ranks beyond the twin",
}


def read(
    denoiser: nn.Module,
    key: WatermarkKey,
    record: WatermarkRecord,
    trials: int,
    seed: int,
    clean_twin: nn.Module | None = None,
) -> tuple[Evidence, ...]:
    """All plain trials at amplitude 1, and the same whitened; with the twin as many trials beyond it, and those whitened."""
    plan = ReadingPlan(
        trials=trials, seed=seed, amplitudes=(1.0,), early_stop=False, clean_twin=clean_twin is not None
    )
    key = record.drawn(key)
    reader = EvidenceReader(key, record, *key_sites(denoiser, key, record), seed)
    run = PlanRun(plan, reader, denoiser, Offers(clean_twin)).run()
    views: tuple[View, ...] = ("plain",) if clean_twin is None else ("plain", "beyond the twin")
    return tuple(found[view] for view in views for found in (run.evidence, run.whitened))


def measure(assets: Path, seeds: int, trials: int, wrong: int) -> Iterator[dict[str, Any]]:
    """One dictionary a row: log10 p of each seed by every statistic."""
    key = WatermarkKey(bytes(range(32)), "Demo")
    record, pipe = WatermarkRecord.load(assets / "marked"), open_pipe(str(assets / "base"), ())
    marked = open_pipe(str(assets / "marked"), ()).unet
    data = LatentData.load(assets / "latents" / "noto.safetensors")
    clean = [("base, as it is", "none", {}, pipe.unet), ("base, noise (std 0.1)", "noise", {"std": 0.1}, pipe.unet)]
    rows = [*clean, *((None, name, hyper, marked) for name, hyper in SETTINGS)]
    for label, name, hyper, start in rows:
        seen: dict[str, list[float]] = {name: [] for name in COLUMNS}
        null: list[float] = []
        shown = ", ".join(f"{n} {v}" for n, v in hyper.items())
        for seed in range(seeds):
            context = AttackContext(pipe, data, data, seed, Path())
            suspect = ATTACKS[name].run(copy.deepcopy(start), context, **hyper).eval()
            by_ranks = read(suspect, key, record, trials, seed, pipe.unet)
            found_p = (by_ranks[0].log10_p(), *(found.rank_log10_p() for found in by_ranks))
            for values, p in zip(seen.values(), found_p, strict=True):
                values.append(p)
            # Keys of its own for each suspect and seed; the four statistics of one share them.
            asked = [key.child(f"null/{label}/{name}/{shown}/{seed}/{number}") for number in range(wrong)]
            null += [Evidence(other, found.response_sum).rank_log10_p() for found in by_ranks for other in asked]
        yield {
            "suspect": label or (f"{name} ({shown})" if shown else name),
            "n": seeds,
            **{by: [min(values), float(np.median(values)), max(values)] for by, values in seen.items()},
            "deeper": sum(min(others) < h for h, *others in zip(*seen.values(), strict=True)),
            "null": {"n": len(null), "at_5_percent": sum(p <= math.log10(0.05) for p in null), "smallest": min(null)},
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    heads = [f"log10 p by {name}: median (range)" for name in COLUMNS.values()]
    cells = []
    for row in rows:
        seen = (f"{middle:.1f} ({low:.1f} to {high:.1f})" for low, middle, high in (row[by] for by in COLUMNS))
        cells.append((row["suspect"], str(row["n"]), *seen, f"{row['deeper']} of {row['n']}"))
    lines = [markdown_table(("suspect", "n", *heads, "deeper than by hits"), cells)]
    count = sum(row["null"]["n"] for row in rows)
    passed = sum(row["null"]["at_5_percent"] for row in rows)
    low, high = clopper_pearson(passed, count)
    smallest = min(row["null"]["smallest"] for row in rows)
    lines += ["", f"Wrong keys' patterns on the same readings: {passed / count:.4f} of {count} have p <= .05 by ranks"]
    lines[-1] += f" (95% CI {low:.4f}-{high:.4f}); smallest log10 p {smallest:.1f}."
    return "\n".join(lines) + "\n"


def run(assets: Path, *, seeds: int, trials: int, wrong: int, progress: Progress = log_progress) -> dict[str, Any]:
    """The whole measurement, on the shipped model.

    Args:
        seeds (`int`): of the attack and of the reading. trials (`int`): of a reading. wrong (`int`): wrong keys a reading.
    Returns:
        JSON-ready; `rows` as `measure` has them.
    """
    rows: list[dict[str, Any]] = []
    for row in measure(assets, seeds, trials, wrong):
        rows.append(row)
        progress(
            len(rows),
            len(SETTINGS) + 2,
            f"{row['suspect']}: by hits {row['hits'][1]:.1f}, by ranks {row['ranks'][1]:.1f}",
        )
    return {"seeds": seeds, "trials": trials, "wrong": wrong, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """The table for people."""
    return f"seeds 0-{result['seeds'] - 1}, {result['trials']} trials\n\n{table(result['rows'])}"
