"""Which files of a folder hold a model's weights, and configs that no file backs."""

import copy
import json
from pathlib import Path

import pytest
import torch
from _tiny import tiny_unconditional, tiny_unet
from safetensors.torch import load_file, save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.denoiser.setup import SLOTS
from aiao_diffusers.errors import NotTestableError, SuspectError, UnsafeFileError, WrongBaseError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.model_folder import DENOISER_FOLDERS


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


@pytest.fixture
def folder(tmp_path, unet) -> Path:
    unet.save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def test_folders_and_pipelines_in_memory_name_their_denoisers_alike():
    assert DENOISER_FOLDERS == SLOTS


class TestFolder:
    def edit(self, folder: Path, **fields: object) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    @pytest.mark.parametrize("variant", [None, "fp16"])
    def test_shards_and_variants(self, unet, tmp_path, variant):
        unet.save_pretrained(tmp_path, max_shard_size="60KB", variant=variant)
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
        assert tensor_sha256(load_denoiser(tmp_path)) == tensor_sha256(unet)

    def test_plain_shards_come_before_a_whole_variant(self, unet, tmp_path):
        other = copy.deepcopy(unet)
        other.conv_in.weight.data.add_(1.0)
        other.save_pretrained(tmp_path, variant="fp16")
        unet.save_pretrained(tmp_path, max_shard_size="60KB")
        assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").exists()
        assert tensor_sha256(load_denoiser(tmp_path)) == tensor_sha256(unet)

    def test_several_variants_and_no_plain_file(self, unet, tmp_path):
        unet.save_pretrained(tmp_path, variant="fp16", max_shard_size="60KB")
        unet.save_pretrained(tmp_path, variant="non_ema")
        with pytest.raises(SuspectError, match="several variants"):
            load_denoiser(tmp_path)

    def test_single_file_variant(self, unet, tmp_path):
        unet.half().save_pretrained(tmp_path, variant="fp16")
        assert tensor_sha256(load_denoiser(tmp_path, dtype=torch.float16)) == tensor_sha256(unet)

    def test_unconditional_unet_with_old_attention_names(self, tmp_path):
        model = tiny_unconditional(
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")
        )
        model.save_pretrained(tmp_path)
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        state = load_file(path)
        for new, name in old.items():
            state = {k.replace(f".{new}.", f".{name}."): v.clone() for k, v in state.items()}
        save_file(state, path)
        assert tensor_sha256(load_denoiser(tmp_path)) == tensor_sha256(model)

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"layers_per_block": 10**9}, UnsafeFileError),
            ({"transformer_layers_per_block": [1, 10**9]}, UnsafeFileError),
            ({"block_out_channels": [8] * 10**5}, UnsafeFileError),
            ({"block_out_channels": [10**9, 10**9]}, UnsafeFileError),
            ({"sample_size": 10**6}, UnsafeFileError),
            ({"cross_attention_dim": [[[[[[[[1]]]]]]]]}, UnsafeFileError),
            ({"block_out_channels": [8, 32]}, WrongBaseError),
            ({"layers_per_block": 2}, WrongBaseError),
            ({"block_out_channels": "x"}, SuspectError),
            ({"norm_num_groups": 0}, SuspectError),
            ({"down_block_types": ["Evil", "Evil"]}, SuspectError),
            ({"quantization_config": {"quant_method": "bitsandbytes"}}, NotTestableError),
        ],
        ids=str,
    )
    def test_configs(self, folder, fields, error):
        self.edit(folder, **fields)
        with pytest.raises(error):
            load_denoiser(folder)

    def test_only_pickles(self, folder):
        path = folder / "diffusion_pytorch_model.safetensors"
        path.rename(path.with_suffix(".bin"))
        with pytest.raises(UnsafeFileError, match="pickle"):
            load_denoiser(folder)


class TestIndex:
    @pytest.fixture
    def sharded(self, tmp_path, unet) -> Path:
        unet.save_pretrained(tmp_path / "unet", max_shard_size="60KB")
        return tmp_path / "unet"

    def redirect(self, folder: Path, target: object) -> None:
        path = folder / "diffusion_pytorch_model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"]["conv_in.weight"] = target
        path.write_text(json.dumps(index))

    @pytest.mark.parametrize(
        "target", ["../x.safetensors", "/etc/passwd", "a/../x.safetensors", "..\\x", "", "..", 3, None, "a\0b"]
    )
    def test_path_tricks(self, sharded, target):
        self.redirect(sharded, target)
        with pytest.raises(UnsafeFileError):
            load_denoiser(sharded)

    def test_missing_shard_and_wrong_shard(self, sharded):
        next(p for p in sharded.glob("*-00002-*.safetensors")).rename(sharded / "gone")
        with pytest.raises(SuspectError, match="missing"):
            load_denoiser(sharded)

    def test_tensor_not_in_its_shard(self, sharded):
        names = sorted(p.name for p in sharded.glob("*.safetensors"))
        held = next(n for n in names if "conv_in.weight" not in load_file(sharded / n))
        self.redirect(sharded, held)
        with pytest.raises(SuspectError, match="disagree"):
            load_denoiser(sharded)

    @pytest.mark.parametrize("text", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": []}', "[" * 10**5])
    def test_broken_index(self, sharded, text):
        (sharded / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
        with pytest.raises(UnsafeFileError):
            load_denoiser(sharded)
