"""`aiao bench formats`: a row that is off is exit code 1."""

import pytest
from _shipped import ASSETS

from aiao_diffusers.bench.audits import formats


@pytest.mark.parametrize("odd", [[], ["kohya"]])
def test_a_row_that_is_off_is_exit_code_1(aiao, monkeypatch, odd):
    asked = []
    monkeypatch.setattr(formats, "run", lambda *words, progress: asked.append(words) or [])
    monkeypatch.setattr(formats, "table", lambda rows: "| format |\n")
    monkeypatch.setattr(formats, "unexpected", lambda rows: odd)
    done = aiao("bench", "formats", "--assets", ASSETS, "--trials", 2, "--seed", 5)
    assert done.code == len(odd) and done.out == "| format |\n" and asked == [(ASSETS, 2, 5)]
    assert ("not kohya" in done.err) == bool(odd)


def test_memory_needs_no_assets(aiao, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "memory", lambda progress: [("kohya", 10.0, 1.1, 0.5)])
    done = aiao("bench", "formats", "--memory", "--assets", tmp_path, "--json")
    assert done.json == [{"format": "kohya", "denoiser_mib": 10.0, "peak_ratio": 1.1, "seconds": 0.5}]


def test_no_assets(aiao, tmp_path):
    aiao("bench", "formats", "--assets", tmp_path).refused("SuspectError", "--assets")
