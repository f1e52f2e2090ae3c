"""`aiao bench list`."""

import json

from typer.testing import CliRunner

from aiao_diffusers.cli.bench import app


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_list_names_attacks_and_methods():
    text, found = call("list").stdout, json.loads(call("list", "--json").stdout)
    assert "\nprune: " in text and "'structured': False}" in text and "watermarkdm" in text.splitlines()[-1]
    assert found["attacks"]["prune"]["hyper_parameters"] == {"amount": 0.3, "structured": False}
    assert found["attacks"]["overwrite"]["strength"] == "steps" and "fixedwm" in found["methods"]
