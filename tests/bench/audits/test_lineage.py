"""The whole run in miniature: a grid, then every part that starts from it, each kept in the folder and printed from there."""

from dataclasses import replace

import pytest
import torch
from _lineage import SHORT, example, quiet, shorten

from aiao_diffusers.bench.audits import lineage, lineage_grid, lineage_price
from aiao_diffusers.bench.audits.lineage import PARTS, LineageRun
from aiao_diffusers.bench.audits.lineage_cells import SIDES
from aiao_diffusers.bench.audits.lineage_tables import markdown
from aiao_diffusers.errors import ResultsError


@pytest.fixture
def run(tmp_path, monkeypatch) -> LineageRun:
    shorten(monkeypatch)
    lineage_grid._models.cache_clear()
    cells = [replace(SHORT, side=side, seed=seed) for seed in range(2) for side in SIDES]
    real = lineage_grid.run_grid
    monkeypatch.setattr(lineage, "run_grid", lambda *given, **named: real(*given, **named, of=lambda: cells))
    monkeypatch.setattr(lineage, "KEYS", 1)
    monkeypatch.setattr(lineage, "OTHER_STEPS", 1)
    for name, value in (("SAMPLES", 4), ("FEW", 2), ("HELD_OUT_DRAWS", 4), ("CURVE_STEPS", (1,))):
        monkeypatch.setattr(lineage_price, name, value)
    monkeypatch.setattr(lineage, "measure_beside_mark", lambda *given: {})
    monkeypatch.setattr(lineage, "measure_attackers", lambda arena, tick: [{"attacker": "none", "key": arena.number}])
    monkeypatch.setattr(lineage, "measure_cost", lambda models, kept, *given, **named: {"rows": [kept.name]})
    folder = tmp_path / "run"
    return LineageRun(example(tmp_path / "example"), folder, pairs=24, files=2, keys=1, readings=1)


@pytest.mark.slow
def test_every_part_is_measured_and_kept(run):
    told = []
    for part in PARTS:
        run.measure(part, lambda done, total, line: told.append((done, total)))
    found = run.read()
    assert tuple(found) == tuple(part for part in PARTS if part != "reread") and all(
        done <= total for done, total in told
    )
    assert [row["side"] for row in found["grid"]["rows"]] == [*SIDES] * 2
    assert [group["pairs"] for group in found["null"]["groups"]] == [24, 8, 2] and found["null"]["rivals"]["n"] == 2
    assert {row["side"] for row in found["after"]["transforms"]} == set(SIDES)
    assert len(found["after"]["extraction"]) == 4 and found["after"]["merges"] == []
    assert len(found["price"]["prices"]) == 2 and {row["steps"] for row in found["price"]["curves"]} == {0, 1}
    assert found["attackers"]["rows"] == [{"attacker": "none", "key": 0}]
    assert found["cost"]["rows"] == [f"{found['grid']['rows'][0]['id']}-adapter.safetensors"]
    assert all("versions" in found[part] for part in PARTS[2:])
    text = markdown({part: found[part] for part in ("grid", "null", "after")})
    assert "p on controls" in text and "After training" in text


@pytest.mark.slow
def test_adapters_that_were_read_again_are_shown_so(run, monkeypatch):
    run.measure("grid", quiet)
    before = run.rows()
    monkeypatch.setattr(lineage, "read_row", lambda file, cell, models: {"log10_p": -9.0, "verdict": "verified"})
    run.measure("reread", quiet)
    assert run.rows() == [row | {"log10_p": -9.0, "verdict": "verified"} for row in before]


@pytest.mark.parametrize("part", ["reread", "null", "after", "cost"])
def test_parts_that_need_adapters_say_so(run, part):
    with pytest.raises(ResultsError, match="run a suite first|part grid"):
        run.measure(part, quiet)
    assert run.read() == {}


def test_threads_are_put_back(run):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run.measure("attackers", quiet)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert run.read()["attackers"]["rank"] == 8
