"""`aiao bench ranks`: its options reach the audit, and what that returns is printed and kept."""

import json

from _shipped import ASSETS

from aiao_diffusers.bench.audits import rank_scores


def test_options_reach_the_audit_and_its_result_is_kept(aiao, tmp_path, monkeypatch):
    asked = {}

    def run(assets, *, progress, **options):
        asked.update(options, assets=assets)
        progress(1, 1, "one row")
        return {"found": 1}

    monkeypatch.setattr(rank_scores, "run", run)
    monkeypatch.setattr(rank_scores, "markdown", lambda result: f"| {result['found']} |\n")
    words = ["bench", "ranks", "--assets", ASSETS, "--seeds", 2, "--trials", 3, "--wrong", 4, "-o", tmp_path]
    done = aiao(*words, "--json")
    assert (done.code, done.json) == (0, {"found": 1}) and "one row" in done.err
    assert asked == {"seeds": 2, "trials": 3, "wrong": 4} | {"assets": ASSETS}
    assert json.loads((tmp_path / "ranks.json").read_text()) == {"found": 1}
    assert (tmp_path / "ranks.md").read_text() == "| 1 |\n" == aiao(*words).out


def test_no_assets(aiao, tmp_path):
    aiao("bench", "ranks", "--assets", tmp_path).refused("SuspectError", "--assets")
