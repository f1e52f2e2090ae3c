"""`aiao bench disguise`: its options reach the audit, and what that returns is printed and kept."""

import json

from _shipped import ASSETS

from aiao_diffusers.bench.audits import disguises


def test_options_reach_the_audit_and_its_result_is_kept(aiao, tmp_path, monkeypatch):
    asked = {}

    def run(assets, *, progress, **options):
        asked.update(options, assets=assets)
        progress(1, 1, "one row")
        return {"found": 1}

    monkeypatch.setattr(disguises, "run", run)
    monkeypatch.setattr(disguises, "markdown", lambda result: f"| {result['found']} |\n")
    words = ["bench", "disguise", "--assets", ASSETS, "--seeds", 2, "--steps", 3, "--only", "permute", "-o", tmp_path]
    done = aiao(*words, "--json")
    assert (done.code, done.json) == (0, {"found": 1}) and "one row" in done.err
    assert asked == {"seeds": 2, "steps": 3, "only": "permute"} | {"assets": ASSETS}
    assert json.loads((tmp_path / "disguise.json").read_text()) == {"found": 1}
    assert (tmp_path / "disguise.md").read_text() == "| 1 |\n" == aiao(*words).out


def test_no_assets(aiao, tmp_path):
    aiao("bench", "disguise", "--assets", tmp_path).refused("SuspectError", "--assets")
