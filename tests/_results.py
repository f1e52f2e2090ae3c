"""Results of a benchmark written by hand, whose numbers are known."""

from pathlib import Path
from typing import Any

from aiao_diffusers.bench.suite import results
from aiao_diffusers.files.jsonl import append_line


def row(
    attack: str,
    hyper: dict[str, Any],
    seed: int,
    log10_p: float | None,
    *,
    mark: str = "ours",
    passed: int = 8,
    base: float = -0.4,
    verdict: str | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """One attacked mark; `base` is log10 p of its control."""
    found = verdict or ("verified" if log10_p <= -6 else "not_verified")
    control = {"verdict": "verified" if base <= -6 else "not_verified", "log10_p": base}
    stamp = {"format": results.FORMAT, "versions": results.versions(), "suite": "s", "alpha": 1e-6}
    what = {"model": "m", "data": "d", "mark": mark, "attack": attack, "hyper": hyper, "seed": seed, "key": 0}
    values = {"verdict": found, "log10_p": log10_p, "bits": 0.9, "passed": passed, "trials": 8, "strength": None}
    rest = {
        "controls": {"base": control, "wrong_key": {"verdict": "not_verified", "log10_p": -0.1}},
        "quality": {"loss_owner": 0.11, "base_loss_owner": 0.1},
        "hashes": {"base": "b" * 64, "marked": "c" * 64, "suspect": "d" * 64},
        "seconds": {"attack": 60.0},
        "finished": "2026-01-01T00:00:00Z",
        "expect": None,
    }
    identity = f"{mark}-{attack}-{sorted(hyper.items())}-{seed}"
    return stamp | {"kind": "cell", "id": identity} | what | values | rest | changes


def write_rows(folder: Path) -> Path:
    """Three seeds of the model as published, and of two strengths of pruning, one of which it does not outlive."""
    rows = [row("none", {}, seed, -100.0 - seed) for seed in range(3)]
    for amount, p in ((0.3, -50.0), (0.7, -2.0)):
        hyper = {"amount": amount, "structured": False}
        rows += [row("prune", hyper, seed, p - seed, passed=4, strength=amount) for seed in range(3)]
    for line in rows:
        append_line(folder / results.FILE, line)
    return folder
