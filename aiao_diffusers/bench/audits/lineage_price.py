"""What the lineage carrier costs the model: predictions, learning, merges, and the sub-path mark that is read beside it."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from ...denoiser.inputs import LatentData
from ...denoiser.price import compare_predictions, predictions
from ...formats.checkpoint import load_denoiser
from ...lineage.carrier import add_carrier
from ...mark.key import WatermarkKey
from ...mark.record import WatermarkRecord
from ...verification.plan import ReadingPlan
from ...verification.verify import verify
from .lineage_cells import SIDES, LoraCell
from .lineage_models import Models, key_of, merge_into
from .lineage_training import held_out, split, train_adapter


SAMPLES, FEW = 128, 32
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
CURVE = LoraCell(rank=16, alpha=16, lr=5e-4, batch=2, steps=500)
CURVE_STEPS = (200, 500)
HELD_OUT_DRAWS = 256


def measure_prices(models: Models, kind: str, number: int) -> dict[str, Any]:
    """Of one carrying model against its clean twin, on the owner's pictures.

    Returns:
        JSON-ready: `price` and `largest`, of one predicted value over the rms of all, in float32; in `halves` the price in bfloat16 and
        float16 against the clean twin in float32, beside what rounding costs the twin itself; `merged`, the price of a 50:50 average.
    """
    data, scheduler = models.data(kind, "noto"), models.scheduler(kind)

    def predict(denoiser: nn.Module, samples: int = SAMPLES) -> torch.Tensor:
        return predictions(denoiser.eval(), data, scheduler, samples=samples)[0]

    twin, carrier = models.twin(kind), models.carrier(kind, number)
    clean, truth = predictions(twin, data, scheduler, samples=SAMPLES)
    marked = predict(carrier)
    told: dict[str, Any] = {
        "kind": kind,
        "key": number,
        "price": compare_predictions(clean, marked, truth)["ratio"],
        "largest": float((marked - clean).abs().max() / clean.square().mean().sqrt()),
        "halves": {},
    }
    for name, dtype in HALVES.items():
        # The draws of fewer samples are the first of the many; a CPU is slow in half precision.
        both = [predict(copy.deepcopy(model).to(dtype), FEW) for model in (twin, carrier)]
        rounding, price = (compare_predictions(clean[:FEW], found, truth[:FEW])["ratio"] for found in both)
        told["halves"][name] = {"price": price, "rounding": rounding}
    merged = predict(merge_into(models.carrier(kind, number), twin, 0.5))
    return told | {"merged": compare_predictions(clean, merged, truth)["ratio"]}


def measure_curve(models: Models, side: str, seed: int, cell: LoraCell = CURVE) -> list[dict[str, Any]]:
    """A LoRA's loss on pictures that it is not trained on, along its training, and on the model itself.

    Returns:
        rows of `side`, `seed`, `steps`, `loss`.
    """
    cell = replace(cell, seed=seed, key=seed % 3, side=side)
    data, scheduler = models.data(cell.kind), models.scheduler(cell.kind)
    rows = []
    for steps in (0, *CURVE_STEPS):
        denoiser = models.model(cell.kind, cell.key, side)
        if steps:  # the same draws from the start, so that the shorter training is the longer one's beginning
            train_adapter(denoiser, replace(cell, steps=steps), split(data, cell.pictures, seed), scheduler)
        rows.append({"side": side, "seed": seed, "steps": steps, "loss": _loss(denoiser, data, scheduler)})
    return rows


def _loss(denoiser: nn.Module, data: LatentData, scheduler: Any) -> float:
    found, truth = predictions(denoiser.eval(), held_out(data), scheduler, samples=HELD_OUT_DRAWS, seed=5)
    return float((found - truth).square().mean())


def measure_curves(models: Models, seeds: Sequence[int], progress: Callable[[], None]) -> list[dict[str, Any]]:
    """Both sides of every seed."""
    rows = []
    for seed in seeds:
        for side in SIDES:
            rows += measure_curve(models, side, seed)
            progress()
    return rows


def paired_difference(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Mean of the second less the first, relative to the mean of the first, with a 95% interval by Student's t."""
    first, second = np.array(pairs, dtype=np.float64).T
    difference = (second - first) / first.mean()
    n, mean = len(difference), float(difference.mean())
    spread = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    half = float(stats.t.ppf(0.975, n - 1)) * spread if n > 1 else math.nan
    return {"n": n, "mean": mean, "low": mean - half, "high": mean + half}


def measure_beside_mark(assets: Path, models: Models) -> dict[str, Any]:
    """The shipped mark before and after a carrier of its key is added, or of another where it has one, read to the end of the plan."""
    marked = load_denoiser(assets / "marked", dtype=torch.float32)
    record, key = WatermarkRecord.load(assets / "marked"), WatermarkKey.load(assets / "demo.key")
    plan = ReadingPlan(early_stop=False)
    before = verify(marked, key, record=record, plan=plan)
    own = record.drawn(key) if record.lineage is None else key_of(0)  # a model carries each key's directions once
    add_carrier(marked, own, models.data("base", "noto"), scheduler=models.scheduler("base"))
    after = verify(marked, key, record=record, plan=plan)
    return {
        name: {"log10_p": report.log10_p, "verdict": report.verdict, "bits": report.bit_accuracy}
        for name, report in (("before", before), ("after", after))
    }


def price_keys(
    models: Models, kinds: Sequence[str], numbers: Sequence[int], progress: Callable[[], None]
) -> list[Any]:
    """`measure_prices` of every kind and key."""
    rows = []
    for kind in kinds:
        for number in numbers:
            rows.append(measure_prices(models, kind, number))
            progress()
    return rows
