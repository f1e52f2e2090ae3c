"""Names in a folder that may be hostile: inside it, no links out of it, no pickles."""

from pathlib import Path

import pytest
from _tiny import tiny_unet
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import UnsafeFileError
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
