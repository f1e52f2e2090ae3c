"""Tables say what their rows say: shares with intervals, medians, the weakest, and controls beside."""

from dataclasses import asdict, replace

import pytest

from aiao_diffusers.bench.audits import lineage_tables as tables
from aiao_diffusers.bench.audits.lineage_cells import LoraCell
from aiao_diffusers.bench.audits.lineage_tables import markdown, middle, rate
from aiao_diffusers.errors import ResultsError


def row(cell, log10_p, **changes):
    verdict = "verified" if log10_p is not None and log10_p <= -6 else "not_verified"
    told = {"log10_p": log10_p, "verdict": verdict, "loss_before": 0.1, "loss_after": 0.08, "id": cell.id}
    return {**asdict(cell), **told, **changes}


def line(text, start):
    (found,) = [x for x in text.split("\n") if x.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def grid_rows():
    rows = []
    for seed, p in enumerate((-30.0, -5.0, -9.0)):
        cell = LoraCell(seed=seed)
        rows.append(row(cell, p, loss_after=0.079))
        rows.append(row(replace(cell, side="twin"), -0.5 - seed))
    muon = replace(LoraCell(seed=9), optimiser="muon")
    raw = {"log10_p": -0.2}
    return [*rows, row(muon, -1.0, raw=raw), row(replace(muon, side="twin"), None, verdict="not_testable", raw=raw)]


def test_the_grid():
    text = tables.grid_tables({"rows": grid_rows()})
    assert line(text, "usual settings, rank at least 8, at least 500 steps")[1:] == [
        "2 of 3 (9% to 99%)",
        "-9.0, -5.0",
        "21.0%",
        "0 of 3",
        "-2.5",
    ]
    assert line(text, "optimiser: muon")[1].startswith("0 of 1 (0% to 98%)") and line(text, "all")[1].startswith(
        "2 of 4"
    )
    assert "Not testable: 1 of 8" in text and "not converted: 0 of 1" in text
    assert "carrier less clean twin" in text and "-0.938%" in text and "n 4" in text
    assert "| lr 0.001 |" not in text  # no such row


def test_rates_and_middles():
    assert rate([-6.0, -5.9]) == "1 of 2 (1% to 99%)" and rate([]) == "none"
    assert middle([-1.0, -3.0, -2.0]) == "-2.0, -1.0" and middle([]) == "none"


def test_controls():
    look = {"share_0.1": 0.1, "share_0.01": 0.01, "share_0.001": 0.001, "smallest": -3.5}
    group = {
        "group": "clean",
        "files": 2,
        "pairs": 1000,
        "alpha": 1e-6,
        "looks": {"ones": look | {"ks_p": 0.4}},
        "adjusted": look,
        "verdicts": 0,
        "verdicts_ci": [0.0, 0.003],
        "expected_smallest": [-4.6, -2.4],
    }
    found = {"groups": [group, {"group": "none", "files": 0, "pairs": 0}], "rivals": {"n": 3, "smallest": -1.5}}
    text = tables.null_tables(found)
    assert "| clean | 2 | 1000 | ones | 0.400 | 0.1000 | 0.0100 | 0.0010 | -3.50 |" in text
    assert "0 verdicts of 1000 at 1e-06" in text and "3 files, smallest log10 p -1.50" in text and "none" not in text


def test_after_training():
    rows = [{"transform": "cast", "side": side, "log10_p": p} for side, p in (("carrier", -20.0), ("twin", -1.0))]
    conversions = [
        {"transform": "kohya", "side": "carrier", "log10_p": -19.5, "plain": -20.0},
        {"transform": "GLoRA", "side": "carrier", "log10_p": None, "plain": -20.0},
    ]
    text = tables.after_tables({"transforms": rows, "merges": [], "extraction": [], "conversions": conversions})
    assert line(text, "cast")[1:] == ["1 of 1 (3% to 100%)", "-20.0, -20.0", "0 of 1", "-1.0"]
    assert "| kohya | 1 of 1 | 0.50 |" in text and "| GLoRA | 0 of 1 | not testable |" in text


def test_price():
    half = {"price": 4e-4, "rounding": 3e-4}
    price = {"kind": "base", "key": 0, "price": 6e-13, "largest": 5e-6, "merged": 6e-4}
    curves = [
        {"side": side, "seed": seed, "steps": steps, "loss": loss + seed / 100}
        for side, loss in (("twin", 0.10), ("carrier", 0.09))
        for seed in (0, 1)
        for steps in (0, 200, 500)
    ]
    beside = {name: {"verdict": "verified", "log10_p": -92.7, "bits": 0.9} for name in ("before", "after")}
    found = {"prices": [price | {"halves": {"bfloat16": half, "float16": half}}], "curves": curves, "beside": beside}
    text = tables.price_tables(found)
    assert "| base | 0 | 6.0e-13 | 5.0e-06 | 0.0004, 0.0003 | 0.0004, 0.0003 | 6.0e-04 |" in text
    assert line(text, "500")[1:3] == ["0.10500", "0.09500"] and "-9.524%" in line(text, "500")[3]
    assert "| before | verified | -92.70 | 0.900 |" in text


def test_attackers():
    def one(name, key, p, gain):
        looks = {"ones": p, "top": 0.0}
        told = {"attacker": name, "key": key, "log10_p": p, "looks": looks, "wrong_key": -0.1, "gain": gain}
        return told | {"gain_published": gain / 2, "seconds": 2.0, "price": 0.0}

    rows = [one("none", 0, -30.0, 0.02), one("none", 1, -20.0, 0.01), one("x", 0, -7.0, 0.01), one("x", 1, -1.0, 0.01)]
    text = tables.attacker_tables({"rows": rows, "rank": 8, "steps": 200, "lr": 5e-4, "targets": "all linear"})
    assert line(text, "x")[1:8] == ["1 of 2", "-7.0, -1.0", "-7.0, -1.0", "0.0, 0.0", "25%", "62%", "0.0e+00"]


def test_cost():
    row = {"file": "a", "file_mib": 4.0, "sites": 33, "seconds": 0.05, "core_seconds": 0.04, "peak_mib": None}
    forwards = row | {"file": "two forwards", "file_mib": None, "sites": None, "peak_mib": 20.4}
    rate_ = {"readings": 10, "seconds": 1.0, "core_seconds": 0.5, "an_hour": 72000.0}
    text = tables.cost_tables({"rows": [row, forwards], "rate": rate_})
    assert "| a | 4.0 | 33 | 50 | 40 | unknown |" in text and "| two forwards |  |  | 50 | 40 | 20 |" in text
    assert "10 readings of the example's adapter: 72000 an hour" in text


def test_a_document_is_rewritten_between_its_marks(tmp_path):
    file = tmp_path / "a.md"
    old = f"a\n<!-- lineage: cost -->\nold\n{tables.END}\nb\n<!-- lineage: null -->\nkept\n{tables.END}\n"
    file.write_text(old)
    rate_ = {"readings": 10, "seconds": 1.0, "core_seconds": 0.5, "an_hour": 72000.0}
    found = {"cost": {"rows": [], "rate": rate_}}
    assert tables.update(file, found) == ["cost"]
    text = file.read_text()
    assert "old" not in text and "72000 an hour" in text and text.startswith("a\n") and "kept" in text
    assert tables.update(file, found) == ["cost"] and file.read_text() == text
    with pytest.raises(ResultsError, match="no mark"):
        tables.update(file, {})
    with pytest.raises(ResultsError, match="cannot be read"):
        tables.update(tmp_path / "none.md", found)


def test_parts_that_were_not_measured_are_left_out():
    text = markdown({"grid": {"rows": grid_rows()}})
    assert text.startswith("Trained adapters (8)") and "p on controls" not in text
    with pytest.raises(KeyError):
        markdown({"nothing": {}})
