"""`aiao verify`: exit codes, and one line that names the value and the fix."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from _shipped import ASSETS, spoil
from _tiny import mark_pairs

from aiao_diffusers import WatermarkRecord


@pytest.mark.slow
def test_a_page_is_written_once(aiao, tmp_path):
    page = tmp_path / "new" / "report.html"
    words = ["verify", ASSETS / "marked", "--key", ASSETS / "demo.key", "--html", page]
    assert aiao(*words).code == 0
    text = page.read_text()
    assert "verified" in text and text.count("data:image/png;base64,") == 4
    assert WatermarkRecord.load(ASSETS / "marked").sha256 in text
    aiao(*words).refused("OutputExistsError", page)
    assert page.read_text() == text


@pytest.mark.slow
def test_all_reads_what_lies_beside_and_the_exit_code_is_the_judged_files(aiao, tmp_path):
    name = "diffusion_pytorch_model"
    shutil.copytree(ASSETS / "base" / "unet", tmp_path / "upload")
    shutil.copy(ASSETS / "marked" / "unet" / f"{name}.safetensors", tmp_path / "upload" / f"{name}.fp16.safetensors")
    words = ["verify", tmp_path / "upload", "--key", ASSETS / "demo.key", "--record", ASSETS / "marked", "--fast"]
    answer = aiao(*words, "--all", "--json")
    (beside,) = answer.json["also_present"]
    assert answer.code == 3 and (beside["path"], beside["verdict"]) == (f"{name}.fp16.safetensors", "verified")
    assert aiao(*words, "--weight-name", f"{name}.fp16.safetensors").code == 0


class TestRefusals:
    def test_no_such_suspect(self, aiao, key, tmp_path):
        aiao("verify", tmp_path / "gone", "--key", key).refused("SuspectError", "gone")

    def test_no_record(self, aiao, key):
        aiao("verify", ASSETS / "base", "--key", key).refused("RecordError", "record=")

    def test_record_of_another_scheme(self, aiao, key, tmp_path):
        shutil.copytree(ASSETS / "marked" / "aiao", tmp_path / "aiao")
        document = tmp_path / "aiao" / "watermark.json"
        document.write_text(json.dumps({**json.loads(document.read_text()), "scheme": "aiao-99"}))
        aiao("verify", ASSETS / "base", "--key", key, "--record", tmp_path).refused("RecordError", "aiao-99")

    def test_record_of_another_architecture(self, aiao, key, tmp_path):
        record = dataclasses.replace(mark_pairs()[1], denoiser="FluxTransformer2DModel")
        record.save(tmp_path)
        answer = aiao("verify", ASSETS / "base", "--key", key, "--record", tmp_path)
        answer.refused("RecordError", "FluxTransformer2DModel", "UNet2DConditionModel")

    def test_lora_without_its_base(self, aiao, key):
        aiao("verify", ASSETS / "lora", "--key", key).refused("SuspectError", "base")

    @pytest.mark.parametrize("option", [("--alpha", "0"), ("--alpha", "1"), ("--trials", "0")])
    def test_numbers_out_of_range(self, aiao, key, option):
        aiao("verify", ASSETS / "marked", "--key", key, *option).refused("ConfigError", option[0][2:], option[1])

    def test_weights_that_are_not_finite_are_not_testable(self, aiao, key, tmp_path):
        code = aiao("verify", spoil(tmp_path / "broken"), "--key", key, "--record", ASSETS / "marked").code
        assert code == 4

    @pytest.mark.slow
    def test_key_others_can_read_warns(self, aiao, key):
        key.chmod(0o644)
        with pytest.warns(UserWarning, match="chmod 600"):
            code = aiao("verify", ASSETS / "marked", "--key", key).code
        assert code == 0


@pytest.mark.slow
def test_one_json_value_in_a_process_of_its_own():
    words = ["verify", ASSETS / "marked", "--key", ASSETS / "demo.key", "--json"]
    program = "from aiao_diffusers.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=300)
    fields = json.loads(done.stdout)
    assert done.returncode == 0 and fields["verdict"] == "verified"
    contract = "verdict log10_p alpha bit_accuracy verification_rate verification_rate_ci trials denoiser_evals"
    assert set(contract.split()) | {"sites", "suspect", "base", "proves", "controls", "warnings"} <= set(fields)
