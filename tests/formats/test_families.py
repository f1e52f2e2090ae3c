"""The family of models that a file looks made for."""

import inspect
import re
from pathlib import Path

import diffusers
import pytest
import torch
from _kind import sample
from _tiny import ATTENTION, tiny_unet
from safetensors.torch import save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import WrongBaseError
from aiao_diffusers.formats.families import differ, likely_base
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


# Class -> what its label says at published widths; "" where no label is given. Layers do not tell: two of each are enough.
FAMILIES = {
    "AllegroTransformer3DModel": "Allegro",
    "AuraFlowTransformer2DModel": "AuraFlow",
    "BriaTransformer2DModel": "FLUX.1 or a relative",
    "ChromaTransformer2DModel": "Chroma",
    "ChronoEditTransformer3DModel": "Wan or a relative",
    "CogVideoXTransformer3DModel": "CogVideoX",
    "CogView4Transformer2DModel": "",
    "CosmosTransformer3DModel": "Cosmos",
    "DiTTransformer2DModel": "",
    "DreamLiteUNetModel": "",
    "ErnieImageTransformer2DModel": "ERNIE-Image",
    "Flux2Transformer2DModel": "FLUX.2",
    "Flux3Transformer2DModel": "FLUX.3",
    "FluxTransformer2DModel": "FLUX.1",
    "HunyuanImageTransformer2DModel": "HunyuanImage",
    "HunyuanVideo15Transformer3DModel": "HunyuanVideo",
    "HunyuanVideoTransformer3DModel": "HunyuanVideo",
    "Ideogram4Transformer2DModel": "Ideogram 4",
    "JoyImageEditTransformer3DModel": "JoyImage",
    "Kandinsky5Transformer3DModel": "Kandinsky 5",
    "Krea2Transformer2DModel": "Krea 2",
    "LTX2VideoTransformer3DModel": "LTX-2",
    "LTXVideoTransformer3DModel": "LTX-Video",
    "LongCatImageTransformer2DModel": "FLUX.1 or a relative",
    "Lumina2Transformer2DModel": "Lumina 2",
    "MiniMaxH3Transformer3DModel": "",
    "MochiTransformer3DModel": "Mochi",
    "MotifVideoTransformer3DModel": "FLUX.1 or a relative",
    "NucleusMoEImageTransformer2DModel": "",
    "OvisImageTransformer2DModel": "FLUX.1 or a relative",
    "PRXTransformer2DModel": "",
    "PixArtTransformer2DModel": "PixArt",
    "PriorTransformer": "",
    "QwenImage21Transformer2DModel": "Qwen-Image 2.1",
    "QwenImageTransformer2DModel": "Qwen-Image",
    "SD3Transformer2DModel": "",
    "SanaTransformer2DModel": "Sana",
    "StableAudioDiTModel": "",
    "UNet3DConditionModel": "",
    "UNetSpatioTemporalConditionModel": "",
    "WanTransformer3DModel": "Wan",
    "ZImageTransformer2DModel": "Z-Image",
}
LAYERS = ("num_layers", "num_single_layers", "num_refiner_layers", "num_visual_blocks", "num_text_blocks", "n_layers")


def published(name: str, **config: object) -> dict[str, tuple[int, ...]]:
    """Shapes at the class's default widths, which are those of its first published model."""
    model_class = getattr(diffusers, name)
    few = {layers: 2 for layers in LAYERS if layers in inspect.signature(model_class.__init__).parameters}
    with torch.device("meta"):
        model = model_class(**(few if "Transformer" in name else {}) | config)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def adapters(shapes: dict[str, tuple[int, ...]], which: str) -> list[dict[str, tuple[int, ...]]]:
    """A LoRA of the linear layers whose names match `which`, as diffusers, as peft and as kohya's trainers write it."""
    found: list[dict[str, tuple[int, ...]]] = [{}, {}, {}]
    for key, shape in shapes.items():
        name = key.removesuffix(".weight")
        if key.endswith(".weight") and len(shape) == 2 and re.search(which, name):
            down, up = (4, shape[1]), (shape[0], 4)
            found[0] |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
            found[1] |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
            stem = "lora_unet_" + name.replace(".", "_")
            found[2] |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": ()}
    return found


@pytest.mark.parametrize("name", sample(FAMILIES, 18))
def test_whole_denoisers_and_adapters_on_them_are_never_of_another_family(name):
    shapes = published(name)
    found = likely_base(shapes) or ""
    assert found.startswith(FAMILIES[name]) and bool(found) == bool(FAMILIES[name])
    for which in (r"\.to_[qkv]$", r"attn|attention", r"ff|mlp|proj", "."):
        for file in adapters(shapes, which):
            assert not differ(file, shapes), (which, likely_base(file))
            # Of the U-Net with XL's widths an adapter shows no more than that.
            assert found or likely_base(file) is None or name == "DreamLiteUNetModel", (which, likely_base(file))


@pytest.mark.parametrize(
    ("name", "config", "family"),
    [
        ("SD3Transformer2DModel", {"num_attention_heads": 24, "caption_projection_dim": 1536}, "3 Medium"),
        ("SD3Transformer2DModel", {"num_attention_heads": 38, "caption_projection_dim": 2432}, "3.5 Large"),
        ("WanTransformer3DModel", {"num_attention_heads": 12, "ffn_dim": 8960}, "Wan"),
        ("FluxTransformer2DModel", {"guidance_embeds": True, "in_channels": 384, "out_channels": 64}, "FLUX.1"),
    ],
    ids=["SD 3", "SD 3.5", "Wan 1.3B", "FLUX.1 Fill"],
)
def test_published_widths(name, config, family):
    shapes = published(name, **config)
    assert family in likely_base(shapes)
    assert all(family in likely_base(file) for file in adapters(shapes, r"attn\d?\.to_[qkv]$"))


def test_families_that_differ_do():
    flux, qwen, wan, ltx = (
        published(f"{name}")
        for name in (
            "FluxTransformer2DModel",
            "QwenImageTransformer2DModel",
            "WanTransformer3DModel",
            "LTXVideoTransformer3DModel",
        )
    )
    for file, base in ((flux, qwen), (qwen, wan), (wan, ltx), (ltx, flux)):
        for adapter in adapters(file, "."):
            assert differ(adapter, base) and not differ(adapter, file)


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
