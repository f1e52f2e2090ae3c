"""A suite's models and data are opened and checked before anything is made."""

import pytest
from _tiny import tiny_unconditional
from diffusers import DDPMPipeline, DDPMScheduler

from aiao_diffusers import WatermarkKey
from aiao_diffusers.bench.suite.runner import run_suite
from aiao_diffusers.errors import ConfigError, DataError


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"data": {"d": "other.safetensors"}}, DataError, "do not fit 'ddpm'"),
        ({"data": {"d": {"folder": "empty"}}}, DataError, "not a readable folder"),
        ({"models": {"m": {"path": "a.safetensors", "data": "a.safetensors"}}}, DataError, "no pipeline folder"),
        ({"models": {"m": {"path": "empty", "data": "a.safetensors"}}}, DataError, "no pipeline folder"),
    ],
)
def test_models_and_data_are_opened_before_anything_is_made(own, tmp_path, change, error, match):
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=match):
        run_suite(own(**change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_marked_folder_of_another_architecture(own, tmp_path):
    DDPMPipeline(tiny_unconditional(layers_per_block=2), DDPMScheduler()).save_pretrained(tmp_path / "marked")
    WatermarkKey.generate("Owner").save(tmp_path / "demo.key")
    marks = {"shipped": {"method": "aiao", "marked": "marked", "key": "demo.key", "keys": 1}}
    with pytest.raises(ConfigError, match="another architecture"):
        run_suite(own(marks=marks), tmp_path / "out")
