"""`aiao bench leaves`: its options reach the audit, and what that returns is printed and kept."""

from _shipped import ASSETS

from aiao_diffusers.bench.audits import leaves


def test_options_reach_the_audit_and_its_result_is_kept(aiao, tmp_path, monkeypatch):
    asked = {}

    def run(assets, *, progress, **options):
        asked.update(options, assets=assets)
        progress(1, 1, "one row")
        return {"found": 1}

    monkeypatch.setattr(leaves, "run", run)
    monkeypatch.setattr(leaves, "markdown", lambda result: f"| {result['found']} |\n")
    words = ["bench", "leaves", "--assets", ASSETS, "--steps", 2, "--lr", 0.5, "--seed", 3, "-o", tmp_path]
    done = aiao(*words, "--marked", "m", "--descendant", "d", "--key", "k", "--json")
    assert (done.code, done.json) == (0, {"found": 1}) and "one row" in done.err
    models = asked.pop("models")
    assert asked == {"steps": 2, "lr": 0.5, "seed": 3, "assets": ASSETS}
    assert [str(models.marked), *map(str, models.descendants), str(models.key)] == ["m", "d", "k"]
    assert (tmp_path / "leaves.md").read_text() == "| 1 |\n"


def test_no_assets_and_a_descendant_of_nothing(aiao, tmp_path):
    aiao("bench", "leaves", "--assets", tmp_path).refused("SuspectError", "--assets")
    assert aiao("bench", "leaves", "--assets", ASSETS, "--descendant", "d").code == 2
