"""Names in a folder that may be hostile: inside it, no links out of it, no pickles."""

from pathlib import Path

import pytest
from _tiny import tiny_unet
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import SuspectError, UnsafeFileError
from aiao_diffusers.files.paths import below, inside, list_weight_files
from aiao_diffusers.formats.checkpoint import load_denoiser


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


@pytest.fixture
def folder(tmp_path, unet) -> Path:
    unet.save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


class TestLinks:
    def test_link_out_of_the_folder(self, tmp_path, folder):
        path = folder / "diffusion_pytorch_model.safetensors"
        path.rename(tmp_path / "outside.safetensors")
        path.symlink_to(tmp_path / "outside.safetensors")
        with pytest.raises(UnsafeFileError, match="link out"):
            load_denoiser(folder)

    def test_links_of_a_hub_cache_are_fine(self, tmp_path, unet):
        blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c0ffee"
        blobs.mkdir(parents=True)
        (snapshot / "unet").mkdir(parents=True)
        unet.save_pretrained(tmp_path / "plain")
        for file in (tmp_path / "plain").iterdir():
            file.rename(blobs / file.name)
            (snapshot / "unet" / file.name).symlink_to(Path("../../../blobs") / file.name)
        (snapshot / "model_index.json").write_text("{}")
        assert tensor_sha256(load_denoiser(snapshot)) == tensor_sha256(unet)


class TestNames:
    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "/etc/passwd", "a\0b"])
    def test_a_name_that_could_lead_out(self, tmp_path, name):
        with pytest.raises(UnsafeFileError, match="could lead out"):
            inside(tmp_path, name)

    def test_missing(self, tmp_path):
        with pytest.raises(SuspectError, match="missing"):
            inside(tmp_path, "a")
        with pytest.raises(SuspectError, match="no folder 'a'"):
            below(tmp_path, "a/b")

    def test_subfolders_that_a_caller_typed(self, tmp_path):
        (tmp_path / "in" / "a").mkdir(parents=True)
        (tmp_path / "in" / "a" / "b").touch()
        (tmp_path / "in" / "out").symlink_to(tmp_path)
        assert below(tmp_path / "in", "a/b") == tmp_path / "in" / "a" / "b"
        for name in ("../in/a/b", "a//b", "./a/b", "a/../a/b"):
            with pytest.raises(UnsafeFileError, match="could lead out"):
                below(tmp_path / "in", name)
        with pytest.raises(UnsafeFileError, match="link out"):
            below(tmp_path / "in", "out/x")

    def test_weight_files(self, tmp_path):
        with pytest.raises(SuspectError, match="not a folder"):
            list_weight_files(tmp_path / "none")
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "a.safetensors").touch()
        with pytest.raises(SuspectError, match=r"no \.safetensors file; its folders deep do"):
            list_weight_files(tmp_path)
        (tmp_path / "w.bin").touch()
        with pytest.raises(UnsafeFileError, match="pickle"):
            list_weight_files(tmp_path)
        for name in ("b.safetensors", "A.SAFETENSORS"):
            (tmp_path / name).touch()
        assert [path.name for path in list_weight_files(tmp_path)] == ["A.SAFETENSORS", "b.safetensors"]


def test_the_state_of_a_trainer_is_not_the_reason(tmp_path, unet):
    unet.save_pretrained(tmp_path / "unet")
    for name in ("optimizer.bin", "random_states_0.pkl", "scheduler.bin", "rng_state_0.pth", "scaler.pt"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(SuspectError, match="its folders unet do"):
        list_weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin.*pickle"):
        list_weight_files(tmp_path)
