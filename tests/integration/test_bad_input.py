"""Bad input on the command line: one line that names the value and the fix, exit code 1, nothing left behind."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from _shipped import ASSETS
from safetensors.torch import load_file, save_file

from aiao_diffusers import WatermarkKey
from aiao_diffusers.cli import main


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "a.key"
    WatermarkKey(bytes(range(32)), "Demo").save(path)
    return path


@pytest.fixture
def aiao(monkeypatch, capsys):
    """Run the command; returns `(exit code, stderr)`."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["aiao", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, capsys.readouterr().err

    return run


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(answer: tuple[int, str], error: str, *parts: str) -> None:
    code, text = answer
    assert code == 1, text
    last = text.splitlines()[-1]  # progress bars may stand above
    assert last.startswith(f"error: {error}: ") and "Traceback" not in text, text
    assert all(str(part) in last for part in parts), last


class TestEmbed:
    def test_missing_key(self, aiao, tmp_path):
        answer = aiao("embed", ASSETS / "base", "--key", tmp_path / "no.key", "-o", tmp_path / "out")
        refused(answer, "KeyFileError", "no.key")
        assert leftovers(tmp_path) == set()

    def test_truncated_key(self, aiao, key, tmp_path):
        key.write_text(key.read_text()[:40])
        refused(aiao("embed", ASSETS / "base", "--key", key, "-o", tmp_path / "out"), "KeyFileError", key)
        assert leftovers(tmp_path) == {"a.key"}

    def test_output_exists(self, aiao, key, tmp_path):
        (tmp_path / "out").mkdir()
        answer = aiao("embed", ASSETS / "base", "--key", key, "-o", tmp_path / "out")
        refused(answer, "OutputExistsError", tmp_path / "out", "choose another")
        assert leftovers(tmp_path / "out") == set()

    def test_already_marked(self, aiao, key, tmp_path):
        answer = aiao("embed", ASSETS / "marked", "--key", key, "-o", tmp_path / "out")
        refused(answer, "AlreadyMarkedError", "allow_marked")
        assert leftovers(tmp_path) == {"a.key"}

    def test_weights_that_are_not_finite(self, aiao, key, tmp_path):
        broken = spoiled(tmp_path / "broken")
        answer = aiao("embed", broken, "--key", key, "-o", tmp_path / "out")
        refused(answer, "TrainingError", "conv_in.weight")
        assert leftovers(tmp_path) == {"a.key", "broken"}

    @pytest.mark.parametrize("data", ["nowhere", "empty"])
    def test_no_data(self, aiao, key, tmp_path, data):
        (tmp_path / "empty").mkdir()
        answer = aiao("embed", ASSETS / "base", "--key", key, "-o", tmp_path / "out", "--data", tmp_path / data)
        refused(answer, "DataError", data)
        assert leftovers(tmp_path) == {"a.key", "empty"}


class TestVerify:
    def test_no_such_suspect(self, aiao, key, tmp_path):
        refused(aiao("verify", tmp_path / "gone", "--key", key), "SuspectError", "gone")

    def test_no_record(self, aiao, key):
        refused(aiao("verify", ASSETS / "base", "--key", key), "RecordError", "record=")

    def test_record_of_another_scheme(self, aiao, key, tmp_path):
        shutil.copytree(ASSETS / "marked" / "aiao", tmp_path / "aiao")
        document = tmp_path / "aiao" / "watermark.json"
        document.write_text(json.dumps({**json.loads(document.read_text()), "scheme": "aiao-99"}))
        refused(aiao("verify", ASSETS / "base", "--key", key, "--record", tmp_path), "RecordError", "aiao-99")

    def test_record_of_another_architecture(self, aiao, key, tmp_path):
        shutil.copytree(ASSETS / "marked" / "aiao", tmp_path / "aiao")
        document = tmp_path / "aiao" / "watermark.json"
        document.write_text(json.dumps({**json.loads(document.read_text()), "denoiser": "FluxTransformer2DModel"}))
        answer = aiao("verify", ASSETS / "base", "--key", key, "--record", tmp_path)
        refused(answer, "RecordError", "FluxTransformer2DModel", "UNet2DConditionModel")

    def test_lora_without_its_base(self, aiao, key):
        refused(aiao("verify", ASSETS / "lora", "--key", key), "SuspectError", "base")

    @pytest.mark.parametrize("option", [("--alpha", "0"), ("--alpha", "1"), ("--trials", "0")])
    def test_numbers_out_of_range(self, aiao, key, option):
        refused(aiao("verify", ASSETS / "marked", "--key", key, *option), "ConfigError", option[0][2:], option[1])

    def test_weights_that_are_not_finite_are_not_testable(self, aiao, key, tmp_path, capsys):
        code, _ = aiao("verify", spoiled(tmp_path / "broken"), "--key", key, "--record", ASSETS / "marked")
        assert code == 3

    def test_key_others_can_read_warns(self, aiao, key):
        key.chmod(0o644)
        with pytest.warns(UserWarning, match="chmod 600"):
            code, _ = aiao("verify", ASSETS / "marked", "--key", key)
        assert code == 0


def spoiled(folder: Path) -> Path:
    """A copy of the base with one infinite weight."""
    shutil.copytree(ASSETS / "base", folder)
    weights = load_file(folder / WEIGHTS)
    weights["conv_in.weight"][0, 0, 0, 0] = torch.inf
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder
