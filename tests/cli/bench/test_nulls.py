"""`aiao bench nulls` on a small scale."""

import json

import numpy as np
import pytest
from _shipped import ASSETS


@pytest.mark.slow
def test_command(aiao, tmp_path):
    words = ["bench", "nulls", "--assets", ASSETS, "--pairs", 60, "--searched", 100, "--steps", 1]
    done = aiao(*words, "-o", tmp_path, "--json")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "nulls.json").read_text())
    groups = {row["group"]: row for row in result["groups"]}
    assert list(groups) == [
        "base",
        "fine-tunes of base",
        "LoRAs on base",
        "marked with another key",
        "random weights",
        "all",
    ]
    assert groups["all"]["pairs"] == 60 and groups["marked with another key"]["models"] == 3
    assert all(row["verdicts"] == 0 and row["ks_p"] > 1e-3 for row in result["groups"])
    low, high = result["claimant"]["expected"]
    assert low < np.log10(1 / 100) < high and result["claimant"]["blocks"] == 1
    assert "KS p" in (tmp_path / "nulls.md").read_text()
    assert (tmp_path / "nulls.png").read_bytes().startswith(b"\x89PNG")


def test_no_assets(aiao, tmp_path):
    aiao("bench", "nulls", "--assets", tmp_path).refused("SuspectError")
