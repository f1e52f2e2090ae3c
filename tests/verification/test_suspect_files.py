"""Which files a verdict is about, of each kind of suspect."""

import hashlib

import pytest
from _shipped import ASSETS
from _tiny import tiny_unet

from aiao_diffusers.errors import ConfigError, SuspectError
from aiao_diffusers.protocol.attestation import Subject
from aiao_diffusers.verification.suspect_files import differences, name_files


WEIGHTS = "diffusion_pytorch_model.safetensors"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestNamed:
    def test_a_pipeline_by_its_denoiser(self):
        found = name_files(ASSETS / "marked")
        names = ["scheduler/scheduler_config.json", "unet/config.json", f"unet/{WEIGHTS}"]
        assert [one.name for one in found.subject] == names and found.origin is None
        assert found.subject[2].digest == sha256(ASSETS / "marked" / "unet" / WEIGHTS)

    def test_a_denoiser_an_adapter_a_file(self):
        assert [one.name for one in name_files(ASSETS / "marked" / "unet").subject] == ["config.json", WEIGHTS]
        (lora,) = name_files(str(ASSETS / "lora")).subject
        assert lora == Subject(
            "pytorch_lora_weights.safetensors", sha256(ASSETS / "lora" / "pytorch_lora_weights.safetensors")
        )
        assert name_files(ASSETS / "lora" / "pytorch_lora_weights.safetensors").subject == (lora,)
        assert name_files(ASSETS / "lora", "pytorch_lora_weights.safetensors").subject == (lora,)

    def test_shards_with_their_index(self, tmp_path):
        tiny_unet().save_pretrained(tmp_path, max_shard_size="100KB")
        names = [one.name for one in name_files(tmp_path).subject]
        assert "config.json" in names and f"{WEIGHTS}.index.json" in names and len(names) > 3

    def test_behind_a_link(self, tmp_path):
        (tmp_path / "link").symlink_to(ASSETS / "marked")
        assert name_files(tmp_path / "link") == name_files(ASSETS / "marked")

    def test_all_of_a_folder_that_cannot_be_judged(self, tmp_path):
        (tmp_path / "config.json").write_text('{"_class_name": "ControlNetModel"}')
        (tmp_path / "weights.bin").write_bytes(b"x")
        assert [one.name for one in name_files(tmp_path).subject] == ["config.json", "weights.bin"]

    def test_of_the_hub_with_its_commit(self, hub, api):
        api.create_repo("owner/x")
        api.upload_folder(repo_id="owner/x", folder_path=ASSETS / "lora")
        commit = api.model_info("owner/x").sha
        found = name_files("owner/x")
        assert found.subject == name_files(ASSETS / "lora").subject
        assert found.origin == {"repo": "owner/x", "commit": commit}

    def test_of_the_hub_where_nothing_was_downloaded(self, hub, api):
        api.create_repo("owner/y")
        api.upload_file(repo_id="owner/y", path_in_repo="model_index.json", path_or_fileobj=b"{}")
        commit = api.model_info("owner/y").sha
        found = name_files("owner/y")
        assert found.subject == (Subject("owner/y", commit, "gitCommit"),) and found.origin["commit"] == commit


class TestRefused:
    def test_in_memory(self):
        with pytest.raises(ConfigError, match="UNet2DConditionModel in memory"):
            name_files(tiny_unet())

    def test_nothing_there(self, tmp_path):
        with pytest.raises(SuspectError, match="gone"):
            name_files(tmp_path / "gone")


def test_differences_are_of_content():
    one, two, moved = Subject("a", "1" * 64), Subject("b", "2" * 64), Subject("c", "1" * 64)
    assert differences([one], [moved]) == [] == differences([], [])
    assert differences([one, two], [moved]) == [f"b (sha256 {two.digest}) is not there"]
    assert differences([one], [one, two]) == [f"b ({two.digest}) is not stated"]
