"""Whole denoisers of every class of diffusers are told by their names, and nothing else is taken for one."""

import inspect

import diffusers
import pytest
import torch
from _kind import sample
from _transformers import TINY
from safetensors.torch import save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import WrongBaseError
from aiao_diffusers.files.safetensors_header import read_header
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import detect, kind_of_keys
from aiao_diffusers.formats.fit import fit_original
from aiao_diffusers.formats.layouts import is_diffusers, is_left_out, is_original


DENOISERS = (
    "AllegroTransformer3DModel",
    "AuraFlowTransformer2DModel",
    "BriaTransformer2DModel",
    "ChromaTransformer2DModel",
    "CogVideoXTransformer3DModel",
    "CogView4Transformer2DModel",
    "CosmosTransformer3DModel",
    "DiTTransformer2DModel",
    "ErnieImageTransformer2DModel",
    "Flux2Transformer2DModel",
    "FluxTransformer2DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "Ideogram4Transformer2DModel",
    "JoyImageEditTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "Krea2Transformer2DModel",
    "LTX2VideoTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "LongCatImageTransformer2DModel",
    "Lumina2Transformer2DModel",
    "MochiTransformer3DModel",
    "OvisImageTransformer2DModel",
    "PRXTransformer2DModel",
    "PixArtTransformer2DModel",
    "QwenImageTransformer2DModel",
    "SD3Transformer2DModel",
    "SanaTransformer2DModel",
    "SkyReelsV2Transformer3DModel",
    "StableCascadeUNet",
    "UNet2DConditionModel",
    "UNet2DModel",
    "WanTransformer3DModel",
    "WanVACETransformer3DModel",
    "ZImageTransformer2DModel",
)
HIDREAM = {
    "patch_size": 2,
    "caption_channels": [16, 16],
    "llama_layers": [0, 1],
    "text_emb_dim": 16,
}
OTHERS = {
    "AsymmetricAutoencoderKL": "unknown",
    "AutoencoderDC": "unknown",
    "AutoencoderKL": "unknown",
    "AutoencoderKLCosmos": "unknown",
    "AutoencoderKLHunyuanVideo": "unknown",
    "AutoencoderKLLTXVideo": "unknown",
    "AutoencoderKLMochi": "unknown",
    "AutoencoderKLQwenImage": "unknown",
    "AutoencoderKLWan": "unknown",
    "AutoencoderTiny": "unknown",
    "ConsistencyDecoderVAE": "unknown",
    "ControlNetModel": "controlnet",
    "CosmosControlNetModel": "controlnet",
    "FluxControlNetModel": "controlnet",
    "MiniMaxMusic3Vocoder": "unknown",
    "MotionAdapter": "motion_adapter",
    "QwenImageControlNetModel": "controlnet",
    "SD3ControlNetModel": "controlnet",
    "SanaControlNetModel": "controlnet",
    "SparseControlNetModel": "controlnet",
    "T2IAdapter": "controlnet",
    "UNetControlNetXSModel": "controlnet",
    "VQModel": "unknown",
}


LAYERS = ("num_layers", "num_single_layers", "num_refiner_layers", "num_visual_blocks", "num_text_blocks")


def shapes_of(name: str, **config: object) -> dict[str, tuple[int, ...]]:
    """Of the class's default widths, with two layers of each kind."""
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    few = {layers: 2 for layers in LAYERS if layers in known} if "Transformer" in name and "VACE" not in name else {}
    with torch.device("meta"):
        model = getattr(diffusers, name)(**few | config)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def kind(shapes: dict[str, tuple[int, ...]]) -> str:
    return kind_of_keys(shapes, shapes)[0]


@pytest.mark.parametrize("name", sample(DENOISERS, 16))
def test_the_classes_of_diffusers(name):
    shapes = shapes_of(name)
    assert is_diffusers(shapes) and not is_original(shapes)
    prefix = ("", "transformer.", "module.", "model.", "_orig_mod.")[DENOISERS.index(name) % 5]
    assert kind({prefix + key: shape for key, shape in shapes.items()}) == "denoiser"


def test_names_below_the_original_prefix():
    """As the tools around ComfyUI write them: from_single_file reads the file."""
    shapes = {f"model.diffusion_model.{key}": shape for key, shape in shapes_of("ZImageTransformer2DModel").items()}
    assert kind(shapes) == "single_file"


def test_hidream_whose_config_has_no_defaults():
    assert kind(shapes_of("HiDreamImageTransformer2DModel", **HIDREAM)) == "denoiser"


@pytest.mark.parametrize("name", sample(OTHERS, 12))
def test_other_parts_of_a_pipeline_are_none(name):
    assert kind(shapes_of(name)) == OTHERS[name]


@pytest.mark.parametrize(
    "keys",
    [
        ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"],
        ["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"],
        ["visual.blocks.0.attn.qkv.weight", "model.layers.0.mlp.gate_proj.weight"],
        ["layers.0.self_attn.q_proj.weight", "norm.weight"],
        ["blocks.0.attn.qkv.weight", "patch_embed.proj.weight"],
        ["vision_model.encoder.layers.0.layer_norm1.weight"],
        ["control_layers.0.adaLN_modulation.0.weight", "control_all_x_embedder.2-1.weight"],
        ["vace_blocks.0.modulation", "vace_patch_embedding.weight"],
        ["decoder.up_blocks.0.resnets.0.scale_shift_table", "decoder.last_time_embedder.linear_1.weight"],
    ],
    ids=lambda keys: keys[0],
)
def test_text_encoders_and_additions_are_none(keys):
    assert kind(dict.fromkeys(keys, (2, 2))) not in ("denoiser", "single_file")


# Of each layout that diffusers converts, names by which `diffusers.loaders.single_file_utils` itself tells it.
ORIGINAL = {
    "Stable Diffusion": "input_blocks.0.0.weight",
    "SD 3": "joint_blocks.0.context_block.adaLN_modulation.1.bias",
    "FLUX, Chroma": "double_blocks.0.img_attn.norm.key_norm.scale",
    "HunyuanVideo": "double_blocks.0.img_attn_qkv.weight",
    "FLUX.3": "early_stream_modulations.image.lin.weight",
    "AuraFlow": "double_layers.0.attn.w2q.weight",
    "LTX": "patchify_proj.weight",
    "Mochi": "blocks.0.attn.qkv_x.weight",
    "Lumina 2, Z-Image": "layers.0.attention.qkv.weight",
    "Sana, PixArt": "y_embedder.y_embedding",
    "Wan": "blocks.0.self_attn.q.weight",
    "Cosmos 1": "net.blocks.block1.blocks.0.block.attn.to_q.0.weight",
    "Cosmos 2": "net.blocks.0.self_attn.q_proj.weight",
    "Krea 2": "txtfusion.projector.weight",
    "Cascade": "clip_txt_mapper.weight",
    "MiniMax-H3": "token_refiner.blocks.0.attn.qkv_proj.weight",
}


@pytest.mark.parametrize("family", ORIGINAL)
def test_original_layouts(family):
    key = ORIGINAL[family]
    assert is_original([key]) and not is_original([key.replace("_", ".")[::-1]])
    assert kind({key: (2, 2), "t_embedder.mlp.0.weight": (2, 2)}) == "single_file"


def tiny(kind: str, **changes: object) -> nn.Module:
    name, config, _ = TINY[kind]
    torch.manual_seed(0)
    return getattr(diffusers, name)(**(config | changes)).eval()


def renamed(model: nn.Module, *pairs: tuple[str, str]) -> dict[str, torch.Tensor]:
    state = {}
    for key, value in model.state_dict().items():
        for ours, theirs in pairs:
            key = key.replace(ours, theirs)
        state[key] = value.clone()
    return state


LTX = (("proj_in.", "patchify_proj."), ("time_embed.", "adaln_single."), ("norm_q", "q_norm"), ("norm_k", "k_norm"))
WAN = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("attn1", "self_attn"),
    ("attn2", "cross_attn"),
    (".to_out.0.", ".o."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    (".norm2.", ".norm3."),
    ("proj_out.", "head.head."),
)


def original_wan(model: nn.Module) -> dict[str, torch.Tensor]:
    state = renamed(model, *WAN)
    state["head.modulation"] = state.pop("scale_shift_table")
    return {key.replace("scale_shift_table", "modulation"): value for key, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("kind", ["LTX", "Wan"])
def test_original_files_load_as_what_they_were(tmp_path, kind, prefix):
    model = tiny(kind)
    state = original_wan(model) if kind == "Wan" else renamed(model, *LTX)
    save_file({f"{prefix}{key}": value for key, value in state.items()}, tmp_path / "x.safetensors")
    assert detect(tmp_path / "x.safetensors").kind == "single_file"
    other = tiny(kind)
    next(other.parameters()).data += 1
    assert tensor_sha256(load_denoiser(tmp_path / "x.safetensors", base=other)) == tensor_sha256(model)


def test_what_the_converter_drops_is_not_counted(tmp_path):
    save_file(
        {"layers.0.attention.qkv.weight": torch.ones(2, 3), "norm_final.weight": torch.ones(5)},
        tmp_path / "x.safetensors",
    )
    header = read_header(tmp_path / "x.safetensors")
    expected = {"layers.0.attention.to_q.weight": (2, 3)}
    assert len(fit_original(header, expected, "x", "ZImageTransformer2DModel")) == 2
    with pytest.raises(WrongBaseError, match="11 numbers"):
        fit_original(header, expected, "x", "SD3Transformer2DModel")
    assert is_left_out("net.pos_embedder.seq", "CosmosTransformer3DModel") and not is_left_out(
        "pos_embed", "SD3Transformer2DModel"
    )
