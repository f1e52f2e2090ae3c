"""`aiao bench verify-cost` on a small scale."""

import json

import pytest
from _shipped import ASSETS


@pytest.mark.slow
def test_command(aiao, tmp_path):
    words = ["bench", "verify-cost", "--assets", ASSETS, "--no-geometry", "--latency-rounds", 1]
    done = aiao(*words, "-o", tmp_path)
    assert done.code == 0 and "forwards" in done.out
    assert json.loads((tmp_path / "verify-cost.json").read_text())["shipped"]["verdict"] == "verified"
