"""Curves from results written by hand."""

from aiao_diffusers.bench.suite.curves import curves
from aiao_diffusers.bench.suite.tables import load


def test_curves(folder, tmp_path):
    written = curves(load(folder), tmp_path / "pictures")
    assert [path.name for path in written] == ["strength.png", "cost.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written)
    assert not curves([r for r in load(folder) if r["attack"] == "none"], tmp_path / "none")
