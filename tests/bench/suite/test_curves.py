"""Curves from results written by hand."""

import pytest

from aiao_diffusers.bench.suite import results
from aiao_diffusers.bench.suite.curves import curves
from aiao_diffusers.bench.suite.tables import load
from aiao_diffusers.files.jsonl import append_line


def row(attack, hyper, seed, log10_p, *, mark="ours", passed=8, base=-0.4, verdict=None, **changes):
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


@pytest.fixture
def folder(tmp_path):
    rows = [row("none", {}, seed, -100.0 - seed) for seed in range(3)]
    for amount, p in ((0.3, -50.0), (0.7, -2.0)):
        hyper = {"amount": amount, "structured": False}
        rows += [row("prune", hyper, seed, p - seed, passed=4, strength=amount) for seed in range(3)]
    for line in rows:
        append_line(tmp_path / results.FILE, line)
    return tmp_path


def test_curves(folder, tmp_path):
    written = curves(load(folder), tmp_path / "pictures")
    assert [path.name for path in written] == ["strength.png", "cost.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written)
    assert not curves([r for r in load(folder) if r["attack"] == "none"], tmp_path / "none")
