"""The verbs of `aiao bench`: all there, light until they run, and help that says what an exit code means."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from aiao_diffusers.cli.bench import app


VERBS = [
    *("run", "table", "list", "verify-cost", "nulls", "disguise", "ranks", "formats", "memory", "fast-plan", "embed"),
    *("inversion", "forgery", "leaves", "lineage", "fuzz"),
]


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_every_verb_is_there():
    assert [command.name for command in app.registered_commands] == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_and_exit_codes(verb):
    text = " ".join(call(verb, "--help").stdout.split())
    assert f"aiao bench {verb}" in text and "Exit codes: 0 done, 1 error" in text and "--json" in text


def test_its_modules_import_nothing_heavy():
    program = (
        "import sys, aiao_diffusers.cli.bench\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'scipy', 'rich.console'} & set(sys.modules)\n"
        "print(sorted(heavy), sorted(name for name in sys.modules if name.startswith('aiao_diffusers.bench')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] ['aiao_diffusers.bench', 'aiao_diffusers.bench.suites']"
