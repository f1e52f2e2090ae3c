"""`aiao bench forgery`: its options reach the audit, a kept result prints without a model, a verdict is exit code 1."""

import copy
import json
from pathlib import Path

from _shipped import ASSETS

from aiao_diffusers.bench.audits import forgery
from aiao_diffusers.bench.audits.forgery_table import load


KEPT = Path(__file__).parents[3] / "docs" / "forgery.json"


def test_options_reach_the_audit_and_its_result_is_kept(aiao, tmp_path, monkeypatch):
    asked, result = {}, load(KEPT)

    def run(assets, *, progress, **options):
        asked.update(options, assets=assets)
        progress(1, 1, "one row")
        return result

    monkeypatch.setattr(forgery, "run", run)
    given = ["--draws", 5, "--trials", 2, "--steps", 6, "--keys", 7, "--guesses", 8, "--tune", 9, "--seed", 3]
    done = aiao("bench", "forgery", "--assets", ASSETS, *given, "-o", tmp_path, "--json")
    assert (done.code, done.json) == (0, result) and "one row" in done.err
    effort = forgery.Effort(steps=6, keys=7, guesses=8, tune=9)
    assert asked == {"draws": 5, "trials": 2, "effort": effort, "seed": 3, "assets": ASSETS}
    assert json.loads((tmp_path / "forgery.json").read_text()) == result


def test_a_kept_result_prints_and_a_verdict_is_exit_code_1(aiao, tmp_path):
    done = aiao("bench", "forgery", "--results", KEPT)
    assert done.code == 0 and "| probe bank by gradient ascent |" in done.out
    result = copy.deepcopy(load(KEPT))
    result["rows"][0]["aiao-2"]["verdicts"] = 1
    (tmp_path / "forgery.json").write_text(json.dumps(result))
    assert aiao("bench", "forgery", "--results", tmp_path / "forgery.json").code == 1


def test_no_assets_and_no_result(aiao, tmp_path):
    aiao("bench", "forgery", "--assets", tmp_path).refused("SuspectError", "--assets")
    (tmp_path / "a.json").write_text("{}")
    aiao("bench", "forgery", "--results", tmp_path / "a.json").refused("ResultsError", "forgery.json")
