"""`aiao bench fuzz`."""

import json

import pytest
from typer.testing import CliRunner

from aiao_diffusers.bench.audits import fuzz
from aiao_diffusers.cli.bench import app


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.slow
def test_a_fuzz_in_files_and_as_json(tmp_path):
    done = call("fuzz", "--rounds", 3, "--seed", 3, "-o", tmp_path, "--json")
    found = json.loads(done.stdout)
    assert found["rounds"] == sum(found["outcomes"].values()) == 3 and found["seed"] == 3
    assert json.loads((tmp_path / "fuzz.json").read_text()) == found
    assert "3 rounds" in (tmp_path / "fuzz.md").read_text()


def test_a_broken_promise_is_exit_code_1(monkeypatch):
    def broken(*args, **kwargs):
        raise fuzz.FuzzFailure("round 7 of seed 3: wrote a file")

    monkeypatch.setattr(fuzz, "fuzz", broken)
    done = call("fuzz", "--rounds", 3)
    assert done.exit_code == 1 and "round 7 of seed 3" in done.stderr and not done.stdout
