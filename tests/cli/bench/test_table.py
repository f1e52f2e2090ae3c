"""`aiao bench table`."""

from typer.testing import CliRunner

from aiao_diffusers.bench.suite.tables import SECTIONS
from aiao_diffusers.cli.bench import app
from aiao_diffusers.cli.bench.table import SECTIONS as SHOWN


def test_an_update_takes_no_results(tmp_path):
    done = CliRunner().invoke(app, ["table", str(tmp_path), "--update", "a.md"])
    assert done.exit_code == 2 and "leave out" in " ".join(done.stderr.replace("│", "").split())


def test_sections_are_those_of_the_tables():
    assert tuple(SECTIONS) == SHOWN
