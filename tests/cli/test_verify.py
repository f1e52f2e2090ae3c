"""`aiao verify`: exit codes, and one line that names the value and the fix."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from _carried import carrier_record, carry, gradient_lora, text_unet
from _kind import extra
from _shipped import ASSETS, spoil
from _tiny import mark_pairs

from aiao_diffusers import WatermarkRecord
from aiao_diffusers.verification.claims import PROVES


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """LoRAs of a model with a lineage carrier and of its clean twin, and records with and without one."""
    folder, marked = tmp_path_factory.mktemp("alone"), text_unet()
    carry(marked)
    gradient_lora(marked, folder / "own.safetensors")
    gradient_lora(text_unet(), folder / "clean.safetensors")
    carrier_record().save(folder / "marked")
    carrier_record(lineage=None).save(folder / "plain")
    return folder


class TestAnAdapterAlone:
    """Exit codes and words of `aiao verify` for a LoRA without a base."""

    def words(self, folder, key, name="own", record="marked"):
        return ["verify", folder / f"{name}.safetensors", "--key", key, "--record", folder / record]

    def test_the_exit_code_is_that_of_the_lineage(self, aiao, key, folder):
        answer = aiao(*self.words(folder, key), "--json")
        assert answer.code == 0 and (answer.json["verdict"], answer.json["proves"]) == ("verified", "lineage")
        assert answer.json["denoiser_evals"] == 0 and answer.json["lineage"]["verdict"] == "verified"
        assert aiao(*self.words(folder, key, "clean")).code == 3
        assert aiao(*self.words(folder, key, record="plain")).code == 4

    def test_people_read_one_sentence(self, aiao, key, folder):
        text = aiao(*self.words(folder, key)).out
        assert text.startswith("# verified") and PROVES["lineage"] in text and PROVES["carries"] not in text
        control = aiao(*self.words(folder, key), "--control", folder / "clean.safetensors").out
        assert "verdict not_verified" in control

    @pytest.mark.parametrize("option", [("--healing",), ("--clean-twin", "x"), ("--reference", "x")])
    def test_what_takes_forwards_is_refused(self, aiao, key, folder, option):
        aiao(*self.words(folder, key), *option).refused("ConfigError", option[0], "without a base", "--base")

    @pytest.mark.slow
    def test_evidence_is_signed_and_checked(self, aiao, key, folder, tmp_path):
        extra("cryptography")
        signer = tmp_path / "signer.key"
        assert aiao("keygen", "--signer", "-o", signer).code == 0
        assert aiao(*self.words(folder, key), "--attest", signer, "-o", tmp_path / "evidence").code == 0
        words = ["check", tmp_path / "evidence", "--suspect", folder / "own.safetensors", "--key", key]
        assert aiao(*words).code == 0
        aiao(*words, "--base", ASSETS / "base").refused("AttestationError", "--base")


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
