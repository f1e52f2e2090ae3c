"""`aiao embed`: bad input ends in one line that names the value and the fix, and leaves nothing behind."""

import json
from pathlib import Path

import pytest
from _shipped import ASSETS, spoil

from aiao_diffusers import WatermarkedStableDiffusionPipeline, WatermarkKey
from aiao_diffusers.errors import ConfigError
from aiao_diffusers.mark.record import WatermarkRecord


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestRefusals:
    def test_missing_key(self, aiao, tmp_path):
        answer = aiao("embed", ASSETS / "base", "--key", tmp_path / "no.key", "-o", tmp_path / "out")
        answer.refused("KeyFileError", "no.key")
        assert leftovers(tmp_path) == set()

    def test_truncated_key(self, aiao, key, tmp_path):
        key.write_text(key.read_text()[:40])
        aiao("embed", ASSETS / "base", "--key", key, "-o", tmp_path / "out").refused("KeyFileError", key)
        assert leftovers(tmp_path) == {"a.key"}

    def test_output_exists(self, aiao, key, tmp_path):
        (tmp_path / "out").mkdir()
        answer = aiao("embed", ASSETS / "base", "--key", key, "-o", tmp_path / "out")
        answer.refused("OutputExistsError", tmp_path / "out", "choose another")
        assert leftovers(tmp_path / "out") == set()

    def test_already_marked(self, aiao, key, tmp_path):
        answer = aiao("embed", ASSETS / "marked", "--key", key, "-o", tmp_path / "out")
        answer.refused("AlreadyMarkedError", "allow_marked")
        assert leftovers(tmp_path) == {"a.key"}

    def test_weights_that_are_not_finite(self, aiao, key, tmp_path):
        broken = spoil(tmp_path / "broken")
        answer = aiao("embed", broken, "--key", key, "-o", tmp_path / "out")
        answer.refused("TrainingError", "conv_in.weight")
        assert leftovers(tmp_path) == {"a.key", "broken"}

    @pytest.mark.parametrize("data", ["nowhere", "empty"])
    def test_no_data(self, aiao, key, tmp_path, data):
        (tmp_path / "empty").mkdir()
        answer = aiao("embed", ASSETS / "base", "--key", key, "-o", tmp_path / "out", "--data", tmp_path / data)
        answer.refused("DataError", data)
        assert leftovers(tmp_path) == {"a.key", "empty"}


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        *((verb, option) for verb in ("embed", "commit") for option in (("--in-sites", 5), ("--pairs",))),
        *(("embed", option) for option in (("--max-price", 0.1), ("--keep", "a.key"), ("--steps", 500))),
    ],
)
def test_a_carrier_alone_takes_no_option_of_another_mark(aiao, key, tmp_path, verb, option):
    model = (ASSETS / "base",) if verb == "embed" else ("--record-of", ASSETS / "base")
    answer = aiao(verb, *model, "--key", key, "-o", tmp_path / "out", "--lineage-only", *option)
    answer.refused("ConfigError", option[0], "--lineage-only", "leave them out")
    assert leftovers(tmp_path) == {"a.key"}


@pytest.mark.slow
def test_embeds_into_pipelines_of_other_classes(aiao, tmp_path):
    key, marked = tmp_path / "a.key", tmp_path / "marked"
    WatermarkKey.generate("Acme").save(key)
    data = ("--data", ASSETS / "latents" / "noto.safetensors")
    fields = ("--steps", 1, "--in-sites", 2, "--out-sites", 4)
    pairs = (*fields, "--pairs", "--json")
    done = aiao("embed", ASSETS / "unconditional", "--key", key, "-o", marked, *data, *pairs)
    assert done.code == 0, done.err
    assert json.loads((marked / "aiao" / "watermark.json").read_text())["pairs"] is True
    assert json.loads((marked / "model_index.json").read_text())["_class_name"] == "LDMPipeline"
    assert WatermarkRecord.load(marked).commitment == WatermarkKey.load(key).commitment
    again = aiao("embed", marked, "--key", key, "-o", tmp_path / "twice", *data, *fields)
    assert again.code == 1 and "AlreadyMarkedError" in again.err
    with pytest.raises(ConfigError, match="is a .LDMPipeline."):
        WatermarkedStableDiffusionPipeline.from_pretrained(marked)
    nowhere = aiao("embed", tmp_path / "nothing", "--key", key, "-o", tmp_path / "out")
    assert nowhere.code == 1 and "SuspectError" in nowhere.err
