"""`aiao bench formats`: a row that is off is exit code 1."""

import json

import pytest
from _shipped import ASSETS

from aiao_diffusers.bench.audits import format_tables, formats


DOCS = ASSETS.parents[1] / "docs"


@pytest.mark.parametrize("odd", [[], ["kohya"]])
def test_a_row_that_is_off_is_exit_code_1(aiao, monkeypatch, odd):
    asked = []
    monkeypatch.setattr(formats, "run", lambda *words, progress: asked.append(words) or [])
    monkeypatch.setattr(format_tables, "table", lambda rows: "| format |\n")
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


def test_a_result_as_table_and_page(aiao, tmp_path):
    committed = DOCS / "formats.json"
    assert aiao("bench", "formats", "--result", committed, "--page").out == (DOCS / "supported_files.md").read_text()
    done = aiao("bench", "formats", "--result", committed)
    assert done.out in (DOCS / "formats.md").read_text() and "as expected" in done.err
    assert aiao("bench", "formats", "--result", committed, "--json").json == json.loads(committed.read_text())
    (tmp_path / "x.json").write_text("{}")
    aiao("bench", "formats", "--result", tmp_path / "no.json").refused("ResultsError", "no.json")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--result", "x.json", "--seed", 1), "--seed"),
        (("--result", "x.json", "--memory"), "--memory"),
        (("--result", "x.json", "-o", "x"), "--output"),
        (("--memory", "--page"), "--page"),
    ],
)
def test_options_that_would_be_ignored_are_refused(aiao, words, named):
    done = aiao("bench", "formats", *words)
    assert done.code == 2 and named in done.err and not done.out
