"""Disguised models and their controls, read plainly and through an alignment: `aiao bench disguise`.

Every row says how many of n suspects were verified by plain looks and by all looks, with 95% Clopper-Pearson intervals.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...denoiser.inputs import LatentData
from ...errors import NotTestableError
from ...files.text import markdown_table
from ...formats.checkpoint import load_denoiser
from ...mark.key import WatermarkKey
from ...mark.record import WatermarkRecord
from ...stats.hits import count_hits
from ...stats.multiple import clopper_pearson
from ...verification.channel_maps import PARSIMONY
from ...verification.evidence import key_sites
from ...verification.reference import Reference, observe
from ...verification.verify import verify
from ..attacks.disguise import disguise
from ..attacks.finetune import full
from ..progress import Progress, log_progress


COLUMNS = (
    *("suspect", "n", "verified plainly (95% CI)", "with alignment (95% CI)", "log10 p plain, median"),
    *("log10 p all looks, median (smallest to largest)", "bits", "maps"),
)
EVERYTHING = "rotate+flip+shear"
ALPHA = 1e-6
Make = Callable[[int], tuple[nn.Module, WatermarkKey]]


def suspects(
    key: WatermarkKey,
    base: nn.Module,
    marked: nn.Module,
    descendants: dict[str, nn.Module],
    style: LatentData,
    schedule: dict[str, Any],
    steps: int,
) -> Iterator[tuple[str, str, Make]]:
    """`(row, expected verdict, maker)`; a maker takes a seed and gives a suspect and the key to ask for."""

    def hidden(model: nn.Module, kind: str, asked: Callable[[int], WatermarkKey] = lambda seed: key) -> Make:
        return lambda seed: (disguise(copy.deepcopy(model), kind, seed=seed), asked(seed))

    def tuned(kind: str) -> Make:
        def make(seed: int) -> tuple[nn.Module, WatermarkKey]:
            model = disguise(copy.deepcopy(marked), kind, seed=seed)
            return full(model, style, schedule, steps=steps, lr=1e-4, seed=seed), key

        return make

    def random(seed: int) -> tuple[nn.Module, WatermarkKey]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return type(base).from_config(dict(base.config)).eval(), key  # type: ignore[attr-defined, arg-type]

    for kind in ("permute", "flip", "rotate", "shear", EVERYTHING):
        yield f"marked, {kind}", "verified", hidden(marked, kind)
    for name, model in descendants.items():
        for kind in ("permute+flip", EVERYTHING):
            yield f"{name}, {kind}", "verified", hidden(model, kind)
    for kind in ("permute", EVERYTHING):
        yield f"marked, {kind}, then {steps} steps of fine-tuning", "verified", tuned(kind)
    yield "control: base, as it is", "not_verified", lambda seed: (base, key.child(f"base/{seed}") if seed else key)
    for kind in ("permute+flip", EVERYTHING):
        yield f"control: base, {kind}", "not_verified", hidden(base, kind)
        wrong = hidden(marked, kind, lambda seed: key.child(f"wrong/{seed}"))
        yield f"control: marked, {kind}, wrong key", "not_verified", wrong
    yield "control: random weights", "not_verified", random


def measure(
    rows: Iterator[tuple[str, str, Make]], record: WatermarkRecord, reference: Reference, seeds: int
) -> Iterator[dict[str, Any]]:
    """One dictionary a row; log10 p is the reported one, after paying for all looks."""
    for name, expected, make in rows:
        plain: list[float] = []
        every: list[float] = []
        bits: list[float] = []
        kinds: set[str] = set()
        for seed in range(seeds):
            model, key = make(seed)
            report = verify(model, key, record=record, reference=reference, alpha=ALPHA, seed=seed)
            if report.log10_p is None or report.bit_accuracy is None:
                raise NotTestableError(f"{name}: {report.reason}")
            looks = [(look["label"].startswith("amplitude"), look["log10_p_adjusted"]) for look in report.looks]
            plain.append(min(p for is_plain, p in looks if is_plain))
            every.append(report.log10_p)
            bits.append(report.bit_accuracy)
            kinds |= set(report.looks[-1]) & set(PARSIMONY)
        limit = float(np.log10(ALPHA))
        counts = {look: int(sum(p <= limit for p in ps)) for look, ps in (("plain", plain), ("all", every))}
        yield {
            "suspect": name,
            "expected": expected,
            "n": seeds,
            "verified": counts,
            "ci": {look: clopper_pearson(count, seeds) for look, count in counts.items()},
            "log10_p_plain": [float(min(plain)), float(np.median(plain)), float(max(plain))],
            "log10_p": [float(min(every)), float(np.median(every)), float(max(every))],
            "bit_accuracy": float(np.mean(bits)),
            "maps": sorted(kinds),
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    cells = []
    for row in rows:
        shown = [f"{row['verified'][k]} ({row['ci'][k][0]:.2f}-{row['ci'][k][1]:.2f})" for k in ("plain", "all")]
        low, middle, high = row["log10_p"]
        depths = (f"{row['log10_p_plain'][1]:.1f}", f"{middle:.1f} ({low:.1f} to {high:.1f})")
        rest = (f"{row['bit_accuracy']:.3f}", ", ".join(row["maps"]))
        cells.append((row["suspect"], str(row["n"]), *shown, *depths, *rest))
    return markdown_table(COLUMNS, cells) + "\n"


def leakage(
    marked: nn.Module, clean: Reference, key: WatermarkKey, record: WatermarkRecord, keys: int = 200
) -> dict[str, float]:
    """Do clean activations of the marked model, less the reference, show the response patterns? An attacker who had the
    reference would search there.

    Returns:
        bit accuracy of the mean difference against the true patterns, over all out-sites, and mean and deviation of the
        same over `keys` wrong ones.
    """
    key, own = record.drawn(key), observe(marked, record.bank, record.scheduler)
    outs = key_sites(marked, key, record)[1]
    change = {s.name: (own.entering[s.name] - clean.entering[s.name].float()).mean((0, 1)).numpy() for s in outs}

    def accuracy(asked: WatermarkKey) -> float:
        parts = [count_hits(d, asked.response_pattern(n, len(d))) for n, d in change.items()]
        return sum(p.hits for p in parts) / sum(p.channels for p in parts)

    wrong = [accuracy(key.child(f"leak/{i}")) for i in range(keys)]
    return {"true": accuracy(key), "wrong_mean": float(np.mean(wrong)), "wrong_sd": float(np.std(wrong)), "keys": keys}


def run(assets: Path, *, seeds: int, steps: int, only: str = "", progress: Progress = log_progress) -> dict[str, Any]:
    """The whole measurement, on the shipped model.

    Args:
        seeds (`int`): suspects a row, each with its own disguise and trials. steps (`int`): of fine-tuning after the disguise,
            batch 16, lr 1e-4. only (`str`): rows whose name contains this.
    Returns:
        JSON-ready; `rows` as `measure` has them, `leak` of the response patterns as `leakage` has it.
    """
    key, record = WatermarkKey(bytes(range(32)), "Demo"), WatermarkRecord.load(assets / "marked")
    base, marked, tuned = (
        load_denoiser(assets / name, dtype=torch.float32) for name in ("base", "marked", "finetuned")
    )
    # The reference that the record names is the owner's, and private; this one is made from the clean twin.
    record, reference = record.as_read(reference_sha256=None), observe(base, record.bank, record.scheduler)
    style = LatentData.load(assets / "latents" / "twemoji.safetensors")
    leak = leakage(marked, reference, key, record)
    every = suspects(key, base, marked, {"full fine-tune": tuned}, style, record.scheduler, steps)
    asked = [row for row in every if only in row[0]]
    rows: list[dict[str, Any]] = []
    for row in measure(iter(asked), record, reference, seeds):
        rows.append(row)
        progress(len(rows), len(asked), f"{row['suspect']}: {row['verified']['all']} of {row['n']} verified")
    return {"seeds": seeds, "steps": steps, "alpha": ALPHA, "leak": leak, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """The table for people."""
    leak = result["leak"]
    return (
        f"seeds 0-{result['seeds'] - 1}, alpha {result['alpha']:g}\n\n{table(result['rows'])}\n"
        f"Response patterns in clean activations: bit accuracy {leak['true']:.3f}, of {leak['keys']} wrong keys "
        f"{leak['wrong_mean']:.3f}, sd {leak['wrong_sd']:.3f}.\n"
    )
