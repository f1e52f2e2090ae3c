"""GGUF files load whole or not at all."""

import importlib.util

import pytest
import torch
from _tiny import ldm_state, tiny_unet
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import NotTestableError, UnsafeFileError, WrongBaseError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import detect


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


class TestWhole:
    def test_gguf(self, tmp_path, unet):
        path = tmp_path / "x.gguf"
        path.write_bytes(b"GGUF")
        assert detect(path).kind == "single_file"
        if importlib.util.find_spec("gguf") is None:
            with pytest.raises(NotTestableError, match="install the package gguf"):
                load_denoiser(path, base=unet)
            return
        with pytest.raises(UnsafeFileError, match="no sound GGUF"):
            load_denoiser(path, base=unet)
        import gguf

        def written(state):
            writer = gguf.GGUFWriter(path, "sd")
            for key, value in state.items():
                writer.add_tensor(key, value.numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            return path

        other = tiny_unet(seed=5)
        assert tensor_sha256(load_denoiser(written(ldm_state(other)), base=unet)) == tensor_sha256(other)
        extra = {"model.diffusion_model.input_blocks.9.0.op.weight": torch.ones(8, 8)}
        for state in ({"elsewhere.weight": torch.ones(2, 2)}, ldm_state(other) | extra):
            with pytest.raises(WrongBaseError, match="numbers of a denoiser"):
                load_denoiser(written(state), base=unet)
