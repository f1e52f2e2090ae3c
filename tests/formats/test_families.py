"""The family of models that a file looks made for."""

from pathlib import Path

import pytest
import torch
from _tiny import ATTENTION, tiny_unet
from safetensors.torch import save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import WrongBaseError
from aiao_diffusers.formats.families import likely_base
from aiao_diffusers.formats.lora import apply_lora


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    return path


def refused(source: Path, unet: nn.Module, error: type, match: str, **options) -> None:
    before = tensor_sha256(unet)
    with pytest.raises(error, match=match), apply_lora(unet, source, **options):
        pass
    assert tensor_sha256(unet) == before


@pytest.mark.parametrize(
    ("key", "shape", "family"),
    [
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight", (4, 768), "Diffusion 1"),
        (
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v.lora_down.weight",
            (4, 1024),
            "Diffusion 2",
        ),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight", (4, 2048), "XL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight", (4, 640), "XL"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (4, 1280), "XL"),
        ("lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.hada_w1_b", (4, 768), "Diffusion 1"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", (4, 1536), "3 Medium"),
        ("base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight", (4, 2432), "3.5 Large"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", (4, 1536), "Stable Diffusion 3"),
        ("transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight", (4, 3072), "FLUX"),
        ("transformer.single_transformer_blocks.0.proj_out.lora_A.weight", (4, 15360), "FLUX"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", (4, 3072), "FLUX"),
        ("conditioner.embedders.1.model.transformer.resblocks.0.attn.lora_A.weight", (4, 1280), "XL"),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight", (4, 768), None),
        ("unet.conv_in.lora_A.weight", (4, 4), None),
    ],
)
def test_the_likely_base_of_an_adapter(key, shape, family):
    found = likely_base({key: shape})
    assert found is None if family is None else family in found


class TestAdapter:
    def test_another_generation_that_fits_in_part(self, tmp_path):
        """An XL adapter of self-attention alone: what SD 1.x has too fits, and no shape disagrees."""
        unet = tiny_unet(cross=768)
        state = {}
        for block in (0, 1):
            name = f"unet.{ATTENTION.removesuffix('0')}{block}.attn1.to_q"
            state |= {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
        match = r"looks made for Stable Diffusion XL, the base given is Stable Diffusion 1"
        refused(save(tmp_path / "x.safetensors", state), unet, WrongBaseError, match)
