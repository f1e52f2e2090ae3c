"""`aiao bench fast-plan`: suites and seeds reach the audit, and its rows are summed up."""

import json

from _shipped import ASSETS

from aiao_diffusers.bench.audits import fast_plan


def test_suites_reach_the_audit_and_rows_are_summed_up(aiao, tmp_path, monkeypatch):
    asked = []

    def measure(assets, suites, seeds, progress):
        asked.append((assets, tuple(suites), seeds))
        return [fast_plan.Row("noise", 1, [-9.0], [-0.1], 1, 0, [8], [8, 8], ["not_verified"] * 2)]

    monkeypatch.setattr(fast_plan, "measure", measure)
    done = aiao("bench", "fast-plan", "--assets", ASSETS, "--suite", "smoke", "--seeds", 1, "-o", tmp_path, "--json")
    assert done.code == 0 and done.json["summary"]["lost"] == ["noise: 1 of 1"]
    assert json.loads((tmp_path / "fast-plan.json").read_text()) == done.json
    assert "| noise | 1 | 1, -9.0 to -9.0 | 0, -0.1 to -0.1 |" in aiao("bench", "fast-plan", "--assets", ASSETS).out
    assert asked == [(ASSETS, ("smoke",), 1), (ASSETS, fast_plan.SUITES, 3)]


def test_no_assets(aiao, tmp_path):
    aiao("bench", "fast-plan", "--assets", tmp_path).refused("SuspectError", "--assets")
