"""What tells a rotation apart from its neighbours; that both equal their trainers is in test_lora and test_adapter_algebra."""

from pathlib import Path

import pytest
import torch
from _tiny import CONV, LINEAR, tiny_unet
from peft import OFTConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import NotTestableError, SuspectError, WrongBaseError
from aiao_diffusers.formats.lora import apply_lora


QUERY = LINEAR[0]
STEM = QUERY.replace(".", "_")


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


def save(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file(state, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def refused(source: Path, unet: nn.Module, error: type, match: str, **options) -> None:
    before = tensor_sha256(unet)
    with pytest.raises(error, match=match), apply_lora(unet, source, **options):
        pass
    assert tensor_sha256(unet) == before


def native(tmp_path: Path, target: str = "to_q", **options) -> Path:
    wrapped = get_peft_model(tiny_unet(), OFTConfig(oft_block_size=4, target_modules=[target], **options))
    for name, parameter in wrapped.named_parameters():
        if "oft_R" in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    wrapped.save_pretrained(tmp_path)
    return tmp_path


class TestLycoris:
    def blocks(self) -> torch.Tensor:
        return torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.3

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_rotation_keeps_every_norm_and_its_inverse_undoes_it(self, tmp_path, dtype):
        unet = tiny_unet().to(dtype)
        weight = unet.get_submodule(QUERY).weight.data.clone()
        source = save(tmp_path, {f"lycoris_{STEM}.oft_blocks": self.blocks()})
        with apply_lora(unet, source):
            turned = unet.get_submodule(QUERY).weight.data.clone()
            assert (turned - weight).norm() > 0.1
            torch.testing.assert_close(turned.norm(dim=0), weight.norm(dim=0))
            with apply_lora(unet, save(tmp_path, {f"lycoris_{STEM}.oft_blocks": -self.blocks()})):
                torch.testing.assert_close(unet.get_submodule(QUERY).weight.data, weight, rtol=1e-4, atol=1e-5)

    def test_a_limit_of_zero_is_none_in_lycoris_and_nothing_in_sd_scripts(self, unet, tmp_path):
        limit = {"alpha": torch.tensor(0.0), "oft_blocks": self.blocks()}
        with apply_lora(unet, save(tmp_path, {f"lycoris_{STEM}.{k}": v for k, v in limit.items()})) as loaded:
            assert loaded.delta_norm > 0.1
        source = save(tmp_path, {f"oft_unet_{STEM}.{k}": v for k, v in limit.items()})
        with pytest.raises(NotTestableError, match="changed 0 modules"), apply_lora(unet, source):
            pass

    @pytest.mark.parametrize("shape", [(3, 4, 4), (2, 4, 5), (8, 8), (2, 2, 4, 3), (40, 2, 4, 4)])
    def test_blocks_of_another_weight(self, unet, tmp_path, shape):
        source = save(tmp_path, {f"lycoris_{STEM}.oft_blocks": torch.ones(shape)})
        refused(source, unet, WrongBaseError, "oft_blocks' has shape")


class TestPeft:
    def test_without_its_config_nobody_knows_how_it_turns(self, unet, tmp_path):
        (native(tmp_path) / "adapter_config.json").unlink()
        refused(tmp_path, unet, NotTestableError, "read with its adapter_config.json")

    def test_a_convolution_that_runs_otherwise_than_it_merges(self, unet, tmp_path):
        refused(native(tmp_path, CONV[0].rpartition(".")[2]), unet, NotTestableError, "runs otherwise than it merges")

    def test_a_projection_that_the_file_does_not_hold(self, unet, tmp_path):
        refused(native(tmp_path, coft=True), unet, NotTestableError, "coft=True")

    def test_it_has_no_scale(self, unet, tmp_path):
        refused(native(tmp_path), unet, SuspectError, "OFT of peft has none", scale=0.5)

    def test_a_butterfly_of_several_factors(self, unet, tmp_path):
        stem = f"base_model.model.{QUERY}"
        state = {f"{stem}.boft_R": torch.zeros(2, 2, 4, 4), f"{stem}.boft_s": torch.ones(8, 1)}
        refused(save(tmp_path, state), unet, NotTestableError, "2 butterfly factors")
