"""`aiao probe`, and `aiao verify --probes` with what it wrote."""

import pytest
from _shipped import ASSETS
from _tiny import tiny_unconditional
from diffusers import DDPMPipeline, DDPMScheduler, EDMEulerScheduler

from aiao_diffusers import Probes
from tests.pipelines import FAMILIES


@pytest.fixture
def unconditional(tmp_path):
    DDPMPipeline(tiny_unconditional(), DDPMScheduler()).save_pretrained(tmp_path / "unconditional")
    return tmp_path / "unconditional"


@pytest.mark.slow
def test_probes_of_the_base_read_the_marked_model(aiao, key, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\na house\n")
    made = tmp_path / "probes.safetensors"
    told = aiao("probe", ASSETS / "base", "--prompts", tmp_path / "p.txt", "--seed", 7, "-o", made, "--json")
    assert told.code == 0 and told.json["inputs"] == 2 and told.json["seed"] == 7
    words = ["--key", key, "--record", ASSETS / "marked", "--probes", made, "--json"]
    seen = aiao("verify", ASSETS / "marked", *words)
    assert seen.code == 0 and seen.json["log10_p"] < -40 and seen.json["probes"]["sha256"] == told.json["sha256"]
    assert aiao("verify", ASSETS / "base", "--fast", *words).code == 3
    aiao("verify", ASSETS / "marked", *words, "--clean-twin", ASSETS / "base").refused("ConfigError", "--clean-twin")


def test_without_prompts(aiao, unconditional, tmp_path):
    answer = aiao("probe", unconditional, "--count", 2, "--steps", 2, "-o", tmp_path / "p.safetensors")
    assert answer.code == 0 and "2 inputs" in answer.out
    made = Probes.load(tmp_path / "p.safetensors")
    assert made.pipeline == str(unconditional) and len(made.data) == 2


@pytest.mark.slow
def test_a_flow_model_gives_probes(aiao, tmp_path):
    family = FAMILIES["stable_diffusion_3"]
    family.build().save_pretrained(tmp_path / "pipe")
    (tmp_path / "p.txt").write_text("a cat\ntwo dogs\n")
    words = ["probe", tmp_path / "pipe", "--prompts", tmp_path / "p.txt", "--steps", 2]
    answer = aiao(*words, "-o", tmp_path / "p.safetensors")
    made = Probes.load(tmp_path / "p.safetensors")
    assert answer.code == 0 and len(made.data) == 2 and made.scheduler["_class_name"].startswith("FlowMatch")


class TestRefusals:
    def test_an_output_that_exists(self, aiao, unconditional, tmp_path):
        (tmp_path / "p").write_text("mine")
        aiao("probe", unconditional, "-o", tmp_path / "p").refused("OutputExistsError", tmp_path / "p")
        assert (tmp_path / "p").read_text() == "mine"

    def test_no_such_pipeline(self, aiao, tmp_path):
        aiao("probe", tmp_path / "gone", "-o", tmp_path / "p").refused("SuspectError", "gone")
        assert not (tmp_path / "p").exists()

    def test_prompts_where_none_are_taken(self, aiao, unconditional, tmp_path):
        (tmp_path / "p.txt").write_text("a cat\n")
        words = ["probe", unconditional, "--prompts", tmp_path / "p.txt", "-o", tmp_path / "p"]
        aiao(*words).refused("DataError", "--prompts")

    @pytest.mark.slow
    def test_a_folder_without_what_reads_prompts(self, aiao, tmp_path):
        pipe = FAMILIES["stable_diffusion_3"].build()
        pipe.register_modules(text_encoder=None, text_encoder_2=None, text_encoder_3=None)
        pipe.save_pretrained(tmp_path / "pipe")
        (tmp_path / "p.txt").write_text("a cat\n")
        words = ["probe", tmp_path / "pipe", "--prompts", tmp_path / "p.txt", "-o", tmp_path / "p"]
        aiao(*words).refused("SuspectError", "text_encoder")
        assert not (tmp_path / "p").exists()

    def test_a_scheduler_of_another_kind(self, aiao, tmp_path):
        DDPMPipeline(tiny_unconditional(), EDMEulerScheduler()).save_pretrained(tmp_path / "pipe")
        aiao("probe", tmp_path / "pipe", "-o", tmp_path / "p").refused("DataError", "EDMEulerScheduler")
        assert not (tmp_path / "p").exists()

    def test_weights_that_are_pickled(self, aiao, unconditional, tmp_path):
        weights = unconditional / "unet" / "diffusion_pytorch_model.safetensors"
        weights.rename(weights.with_suffix(".bin"))
        aiao("probe", unconditional, "-o", tmp_path / "p").refused("SuspectError", unconditional)

    def test_a_file_that_is_none(self, aiao, key, tmp_path):
        words = ["verify", ASSETS / "marked", "--key", key, "--probes", tmp_path / "gone"]
        aiao(*words).refused("DataError", "gone")
