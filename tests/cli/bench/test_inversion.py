"""`aiao bench inversion`: its options reach the audit, and what that returns is printed and kept."""

import json

from _shipped import ASSETS

from aiao_diffusers.bench.audits import inversion


def test_options_reach_the_audit_and_its_result_is_kept(aiao, tmp_path, monkeypatch):
    asked = {}

    def run(assets, *, progress, **options):
        asked.update(options, assets=assets)
        progress(1, 1, "one row")
        return {"found": 1}

    monkeypatch.setattr(inversion, "run", run)
    monkeypatch.setattr(inversion, "markdown", lambda result: f"| {result['found']} |\n")
    words = ["bench", "inversion", "--assets", ASSETS, "--seeds", 2, "--starts", 3, "--steps", 0, "-o", tmp_path]
    done = aiao(*words, "--json")
    assert (done.code, done.json) == (0, {"found": 1}) and "one row" in done.err
    assert asked == {"seeds": 2, "starts": 3, "steps": 0} | {"assets": ASSETS}
    assert json.loads((tmp_path / "inversion.json").read_text()) == {"found": 1}
    assert (tmp_path / "inversion.md").read_text() == "| 1 |\n" == aiao(*words).out


def test_no_assets(aiao, tmp_path):
    aiao("bench", "inversion", "--assets", tmp_path).refused("SuspectError", "--assets")
