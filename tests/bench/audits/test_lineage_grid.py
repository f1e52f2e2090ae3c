"""A grid of two cells: the carrying side tells, the clean twin does not, and a second call trains nothing."""

from dataclasses import replace

import pytest
import torch
from _lineage import CELL, SHORT, example, quiet, shorten
from safetensors.torch import load_file

from aiao_diffusers.bench.audits import lineage_grid
from aiao_diffusers.bench.audits.lineage_cells import SIDES
from aiao_diffusers.bench.audits.lineage_grid import adapter_file, describe, run_grid
from aiao_diffusers.errors import ResultsError, TrainingError
from aiao_diffusers.files.jsonl import lock_folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    shorten(monkeypatch)
    lineage_grid._models.cache_clear()
    return example(tmp_path / "example"), tmp_path / "run"


def sides(cell):
    return [replace(cell, side=side) for side in SIDES]


@pytest.mark.slow
def test_the_carrying_side_tells_and_the_twin_does_not(place):
    own, clean = run_grid(*place, of=lambda: sides(CELL), progress=quiet)
    assert own["verdict"] == "verified" and own["log10_p"] < -6 and own["share"] == 1.0
    assert clean["verdict"] == "not_verified" and clean["log10_p"] > -3
    assert own["base"] != clean["base"] and own["loss_before"] == pytest.approx(clean["loss_before"], rel=1e-3)
    assert set(own["looks"]) == {"ones", "top"} and own["seconds"] > own["training_seconds"] > 0
    assert "rank 4, 40 steps" in describe(own) and describe(own).startswith("base carrier lora")


@pytest.mark.slow
def test_a_second_call_trains_what_is_missing_alone(place, monkeypatch):
    cells = [*sides(SHORT), *sides(replace(SHORT, seed=1))]
    first = run_grid(*place, cells=2, of=lambda: cells, progress=quiet)
    assert [row["side"] for row in first] == list(SIDES)
    assert run_grid(*place, limit_seconds=0, cells=2, of=lambda: cells, progress=quiet) == first
    trained = []
    real = lineage_grid.train_adapter
    monkeypatch.setattr(lineage_grid, "train_adapter", lambda *given: trained.append(given[1]) or real(*given))
    rows = run_grid(*place, of=lambda: cells, progress=quiet)
    assert trained == cells[2:] and [row["id"] for row in rows] == [cell.id for cell in cells]
    assert all(adapter_file(place[1], row["id"]).is_file() for row in rows)


def test_no_time_trains_nothing(place):
    assert run_grid(*place, limit_seconds=-1, of=lambda: sides(SHORT), progress=quiet) == []


@pytest.mark.slow
def test_pissa_is_kept_as_it_stands_too(place):
    (row,) = run_grid(*place, of=lambda: [replace(SHORT, init="pissa")], progress=quiet)
    raw, converted = (load_file(adapter_file(place[1], row["id"], what)) for what in ("raw", "adapter"))
    for name, value in raw.items():
        axis = 1 if "lora_B" in name else 0
        assert converted[name].shape[axis] == 2 * value.shape[axis]
        assert torch.equal(converted[name].narrow(axis, 0, value.shape[axis]), value)
    assert row["raw"]["sha256"] != row["sha256"]


@pytest.mark.slow
def test_a_cell_that_fails_is_told_and_tried_again(place, monkeypatch):
    def fail(*given):
        raise TrainingError("the loss is nan at step 3")

    with monkeypatch.context() as patched:
        patched.setattr(lineage_grid, "train_adapter", fail)
        (row,) = run_grid(*place, of=lambda: [SHORT], progress=quiet)
        assert row["verdict"] == "failed" and "nan" in row["error"] and "failed" in describe(row)
    (row,) = run_grid(*place, of=lambda: [SHORT], progress=quiet)
    assert row["verdict"] != "failed"


def test_one_run_at_a_time(place):
    with lock_folder(place[1]), pytest.raises(ResultsError, match="in use"):
        run_grid(*place, of=lambda: [SHORT], progress=quiet)
