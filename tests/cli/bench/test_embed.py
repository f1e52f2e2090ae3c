"""`aiao bench embed`: one marked folder, or every mark of a run."""

from _shipped import ASSETS

from aiao_diffusers.bench.audits import marks


def test_a_folder_or_a_run_is_measured_with_the_settings_asked_for(aiao, tmp_path, monkeypatch):
    asked = []

    def measured(*words):
        asked.append(words[:-1])
        return {"key 0": {}}

    monkeypatch.setattr(marks, "measure_folder", measured)
    monkeypatch.setattr(marks, "measure_run", measured)
    monkeypatch.setattr(marks, "markdown", lambda results: "| what |\n")
    words = ["bench", "embed", "--assets", ASSETS, "--images", 0, "--wrong", 3, "--ascent", 1]
    done = aiao(*words, "--seed", 4, "-o", tmp_path, "--json")
    assert done.json == {"key 0": {}} and (tmp_path / "embed.md").read_text() == "| what |\n"
    assert aiao(*words, "--run", tmp_path, "--suite", "smoke").out == "| what |\n"
    settings = marks.Settings(images=0, wrong=3, ascent=1, sampling=20, starts=16)
    assert asked == [
        (ASSETS / "marked", ASSETS / "demo.key", ASSETS, 4, settings),
        ("smoke", tmp_path, ASSETS, settings),
    ]


def test_no_assets(aiao, tmp_path):
    aiao("bench", "embed", "--assets", tmp_path).refused("SuspectError", "--assets")
