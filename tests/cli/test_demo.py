"""`aiao demo`: nine verdicts as expected."""

import pytest
from _shipped import ASSETS

from aiao_diffusers.cli.demo import _cells


def test_demo_shows_a_verdict_without_numbers():
    row = {"name": "x", "expected": "verified", "verdict": "not_testable", "log10_p": None, "bit_accuracy": None}
    assert _cells(row) == ["x", "verified", "not_testable", "", ""]
    assert _cells({**row, "log10_p": -9.0, "bit_accuracy": 1.0})[3:] == ["-9.0", "1.000"]


@pytest.mark.slow
def test_demo(aiao, tmp_path):
    done = aiao("demo", "--assets", ASSETS, "-o", tmp_path / "report", "--json")
    rows = done.json
    assert done.code == 0, done.err
    assert len(rows) == 9 and all(row["verdict"] == row["expected"] for row in rows)
    assert (tmp_path / "report" / "report.md").exists()
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<details>") == 9 and "Who carries the mark?" in page
