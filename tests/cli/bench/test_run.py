"""`aiao bench run`."""

from typer.testing import CliRunner

from aiao_diffusers.cli.bench import app


def test_one_suite_is_named():
    for words in (["run", "smoke", "--quick"], ["run"]):
        assert CliRunner().invoke(app, words).exit_code == 2
