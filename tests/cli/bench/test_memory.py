"""`aiao bench memory`."""

import json

from typer.testing import CliRunner

from aiao_diffusers.bench.audits import memory
from aiao_diffusers.cli.bench import app
from aiao_diffusers.errors import ConfigError


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_memory_rows_and_table(monkeypatch):
    monkeypatch.setattr(
        memory, "measure_apart", lambda base, latents, train, size, plain: 2**20 * (100 if plain else 110)
    )
    done = call("memory", "base", "--latents", "file", "--train", "lora", "--batch-size", 2)
    assert "| lora | 2 | 100 | 110 | 1.100 |" in done.stdout
    rows = json.loads(call("memory", "base", "--latents", "file", "--json").stdout)
    assert len(rows) == 6 and rows[0] == {
        "train": "full",
        "batch_size": 1,
        "ordinary": 100 * 2**20,
        "embedding": 110 * 2**20,
    }
    assert isinstance(call("memory", "base", "--latents", "file", "--train", "lorra").exception, ConfigError)
