"""`aiao bench lineage`: its options reach the run, and tables are printed from what the folder holds."""

import json

import pytest
from _shipped import ASSETS

from aiao_diffusers.bench.audits import lineage as audit
from aiao_diffusers.cli.bench.lineage import PARTS


RATE = {"readings": 1, "seconds": 1.0, "core_seconds": 1.0, "an_hour": 3600.0}


@pytest.fixture
def measured(monkeypatch):
    asked = []

    def measure(run, part, progress):
        progress(1, 1, f"one of {part}")
        asked.append((part, run))
        run.folder.mkdir(exist_ok=True)
        (run.folder / f"{part}.json").write_text(json.dumps({"rows": [], "rate": RATE}))

    monkeypatch.setattr(audit.LineageRun, "measure", measure)
    return asked


def test_the_parts_are_those_of_the_audit():
    assert PARTS == audit.PARTS


def test_options_reach_the_run_and_its_parts_are_printed(aiao, tmp_path, measured):
    words = ["bench", "lineage", "--assets", ASSETS, "-o", tmp_path / "run", "--part", "cost", "--readings", 7]
    done = aiao(*words, "--pairs", 99, "--files", 2, "--keys", 1, "--seed", 5)
    assert done.code == 0 and done.out.startswith("Cost of a reading") and "one of cost" in done.err
    ((part, run),) = measured
    assert (part, run.readings, run.pairs, run.files, run.keys, run.seed) == ("cost", 7, 99, 2, 1, 5)
    document = tmp_path / "a.md"
    document.write_text("<!-- lineage: cost -->\n<!-- lineage end -->\n")
    printed = aiao(
        "bench", "lineage", "--assets", ASSETS, "-o", tmp_path / "run", "--tables", "--json", "--update", document
    )
    assert "Cost of a reading" in document.read_text() and "wrote" in printed.err
    assert printed.json == {"cost": {"rows": [], "rate": RATE}} and len(measured) == 1


def test_parts_go_in_their_order(aiao, tmp_path, measured):
    words = ["bench", "lineage", "--assets", ASSETS, "-o", tmp_path, "--part", "cost", "--part", "grid", "--cells", 2]
    aiao(*words, "--jobs", 2, "--limit-seconds", 3)
    assert [part for part, _ in measured] == ["grid", "cost"]
    run = measured[0][1]
    assert (run.cells, run.jobs, run.limit_seconds) == (2, 2, 3.0)


@pytest.mark.parametrize(
    "words",
    [
        ["--part", "nothing"],
        ["--part", "null", "--cells", 2],
        ["--tables", "--jobs", 2],
        ["--tables"],
        ["--keys", 4],
    ],
)
def test_misuse(aiao, tmp_path, measured, words):
    done = aiao("bench", "lineage", "--assets", ASSETS, "-o", tmp_path, *words)
    assert done.code == 2 and not measured


def test_no_assets(aiao, tmp_path):
    aiao("bench", "lineage", "--assets", tmp_path).refused("SuspectError", "--assets")
