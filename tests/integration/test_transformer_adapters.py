"""A LoRA on a transformer is read as stock diffusers reads it: saved by its pipelines, by peft, and in original names."""

import inspect
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from _kind import sample
from _transformers import build
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from aiao_diffusers.errors import AIAOError
from aiao_diffusers.formats.lora import apply_lora
from aiao_diffusers.formats.module_names import module_index


def _z_image() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 32, 32],
    ).eval()


def _lumina() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        cap_feat_dim=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(64, 32, 32),
        multiple_of=16,
    ).eval()


def _of(kind: str) -> Callable[[], nn.Module]:
    return lambda: build(kind)


MODELS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "FLUX.1": ("FluxPipeline", _of("FLUX.1")),
    "SD3": ("StableDiffusion3Pipeline", _of("SD3")),
    "Wan": ("WanPipeline", _of("Wan")),
    "Qwen-Image": ("QwenImagePipeline", _of("Qwen-Image")),
    "Z-Image": ("ZImagePipeline", _z_image),
    "LTX": ("LTXPipeline", _of("LTX")),
    "Lumina 2": ("Lumina2Pipeline", _lumina),
    "Sana": ("SanaPipeline", _of("Sana")),
    "HunyuanVideo": ("HunyuanVideoPipeline", _of("HunyuanVideo")),
    "CogVideoX": ("CogVideoXPipeline", _of("CogVideoX")),
    "Chroma": ("ChromaPipeline", _of("Chroma")),
}


def linear(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def trained(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def pipe_of(family: str, denoiser: nn.Module) -> object:
    """The stock pipeline around a denoiser alone."""
    pipeline = getattr(diffusers, MODELS[family][0])
    needed = inspect.signature(pipeline.__init__).parameters.values()
    parts = {p.name: None for p in needed if p.default is inspect.Parameter.empty and p.name != "self"}
    return pipeline(**{**parts, "transformer": denoiser})


def fused(family: str, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that the stock pipeline runs with the adapter merged."""
    model = MODELS[family][1]()
    pipe = pipe_of(family, model)
    pipe.load_lora_weights(folder)
    pipe.fuse_lora(components=["transformer"])
    return {k.replace(".base_layer", ""): v for k, v in model.state_dict().items() if "lora_" not in k}


def check(family: str, folder: Path, wanted: dict[str, torch.Tensor], modules: int) -> None:
    model = MODELS[family][1]()
    before = model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    with apply_lora(model, folder) as loaded:
        found = model.state_dict()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)
        assert loaded.modules == modules == sum(not torch.equal(before[name], value) for name, value in wanted.items())
        assert not loaded.unused_keys and not loaded.warnings


@pytest.mark.slow
@pytest.mark.parametrize("family", sample(MODELS, 6))
def test_saved_by_the_stock_pipeline(tmp_path, family):
    model = MODELS[family][1]()
    names = linear(model)
    model.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=names))
    state = get_peft_model_state_dict(trained(model))
    getattr(diffusers, MODELS[family][0]).save_lora_weights(tmp_path, transformer_lora_layers=state)
    check(family, tmp_path, fused(family, tmp_path), len(names))


@pytest.mark.parametrize("family", sample(MODELS, 4, seed=1))
def test_saved_by_peft(tmp_path, family):
    wrapped = get_peft_model(MODELS[family][1](), LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "to_v"]))
    trained(wrapped).save_pretrained(tmp_path)
    modules = sum(name.endswith((".to_q", ".to_v")) for name in linear(MODELS[family][1]()))
    check(family, tmp_path, wrapped.merge_and_unload().state_dict(), modules)


WAN_KEYS = [
    f"blocks.{n}.{name}"
    for n in (0, 1)
    for name in (*(f"{a}_attn.{b}" for a in ("self", "cross") for b in "qkvo"), "ffn.0", "ffn.2")
]
Z_KEYS = [
    f"{stack}.attention.{name}"
    for stack in ("layers.0", "layers.1", "noise_refiner.0")
    for name in ("to_q", "to_k", "out")
]
LUMINA_KEYS = [
    f"{stack}.{name}"
    for stack in ("layers.0", "layers.1", "noise_refiner.0", "context_refiner.0")
    for name in ("attention.out", *(f"feed_forward.w{n}" for n in (1, 2, 3)))
]
HUNYUAN_KEYS = [
    *(
        f"double_blocks.{n}.{side}_{name}"
        for n in (0, 1)
        for side in ("img", "txt")
        for name in ("attn_qkv", "attn_proj", "mlp.fc1", "mlp.fc2", "mod.linear")
    ),
    *(f"single_blocks.{n}.{name}" for n in (0, 1) for name in ("linear2", "modulation.linear")),
]
LTX_KEYS = [f"transformer_blocks.{n}.{name}" for n in (0, 1) for name in ("attn1.to_q", "attn2.to_out.0", "ff.net.2")]
ORIGINAL = {"Wan": WAN_KEYS, "Z-Image": Z_KEYS, "HunyuanVideo": HUNYUAN_KEYS, "LTX": LTX_KEYS}


def original(family: str, keys: list[str], underscored: bool = False) -> dict[str, torch.Tensor]:
    """A LoRA in original names, of the sizes that these have."""
    model = MODELS[family][1]()
    index, generator = module_index(model), torch.Generator().manual_seed(2)
    state = {}
    for key in keys:
        target = index[key]
        weights = [model.get_submodule(part.module).weight for part in target.parts]
        rows, columns = sum(len(w) for w in weights), weights[0].shape[1]
        stem = "lora_unet_" + key.replace(".", "_") if underscored else f"diffusion_model.{key}"
        # Of Z-Image's `out` stock diffusers converts this spelling alone, and drops it silently in the other.
        down, up = ("lora_down", "lora_up") if underscored or family == "Z-Image" else ("lora_A", "lora_B")
        state[f"{stem}.{down}.weight"] = torch.randn(3, columns, generator=generator) * 0.2
        state[f"{stem}.{up}.weight"] = torch.randn(rows, 3, generator=generator) * 0.2
        if underscored:
            state[f"{stem}.alpha"] = torch.tensor(1.5)
    return state


def modules_of(family: str, keys: list[str]) -> int:
    index = module_index(MODELS[family][1]())
    return len({part.module for key in keys for part in index[key].parts})


@pytest.mark.slow
@pytest.mark.parametrize("family", ORIGINAL)
def test_in_original_names(tmp_path, family):
    """As ComfyUI's trainers write them, and as stock pipelines convert them."""
    save_file(original(family, ORIGINAL[family]), tmp_path / "pytorch_lora_weights.safetensors")
    check(family, tmp_path, fused(family, tmp_path), modules_of(family, ORIGINAL[family]))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Wan", "Z-Image"])
def test_in_kohyas_underscores(tmp_path, family):
    keys = ORIGINAL[family]
    save_file(original(family, keys, underscored=True), tmp_path / "pytorch_lora_weights.safetensors")
    check(family, tmp_path, fused(family, tmp_path), modules_of(family, keys))


def test_fused_projections_fill_their_modules_in_order(tmp_path):
    """Lumina 2 has fewer keys than queries; diffusers' converter knows its published widths alone."""
    model = _lumina()
    out, width = (
        [model.get_submodule(f"layers.0.attn.{name}").weight.shape[0] for name in ("to_q", "to_k", "to_v")],
        32,
    )
    down, up = torch.randn(2, width), torch.randn(sum(out), 2)
    state = {"diffusion_model.layers.0.attention.qkv.lora_A.weight": down}
    save_file({**state, "diffusion_model.layers.0.attention.qkv.lora_B.weight": up}, tmp_path / "x.safetensors")
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    with apply_lora(model, tmp_path) as loaded:
        assert loaded.modules == 3
        for name, rows in zip(("to_q", "to_k", "to_v"), up.split(out), strict=True):
            key = f"layers.0.attn.{name}.weight"
            torch.testing.assert_close(model.state_dict()[key], plain[key] + rows @ down, rtol=0, atol=1e-5)
    assert modules_of("Lumina 2", LUMINA_KEYS) == len(LUMINA_KEYS)


PUBLISHED = {
    "FLUX.1": ("transformer.single_transformer_blocks.0.attn.to_q", 3072, "FLUX.1"),
    "Qwen-Image": ("transformer.transformer_blocks.0.txt_mlp.net.2", 12288, "Qwen-Image"),
    "Wan": ("diffusion_model.blocks.0.self_attn.q", 5120, "Wan"),
    "Z-Image": ("diffusion_model.layers.0.attention.qkv", 3840, "Z-Image"),
    "LTX": ("transformer.transformer_blocks.0.attn2.to_k", 2048, "LTX-Video"),
    "SD3": ("lora_unet_joint_blocks_0_x_block_attn_qkv", 1536, "Stable Diffusion 3"),
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_an_adapter_of_another_family_is_named(tmp_path, family):
    stem, width, label = PUBLISHED[family]
    roles = ("lora_down", "lora_up") if stem.startswith("lora_unet_") else ("lora_A", "lora_B")
    shapes = ((4, width), (width, 4))
    save_file(
        {f"{stem}.{r}.weight": torch.ones(s) for r, s in zip(roles, shapes, strict=True)}, tmp_path / "x.safetensors"
    )
    other = "Sana" if family != "Sana" else "Wan"
    with pytest.raises(AIAOError, match=f"looks made for {label}"), apply_lora(MODELS[other][1](), tmp_path):
        pass


def test_the_state_that_is_compared_has_both_factors(tmp_path):
    """The control: a changed factor is seen."""
    model = MODELS["SD3"][1]()
    model.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=["to_q"]))
    state = get_peft_model_state_dict(trained(model))
    diffusers.StableDiffusion3Pipeline.save_lora_weights(tmp_path, transformer_lora_layers=state)
    wanted = fused("SD3", tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    held = load_file(file)
    save_file({k: v * (1.1 if k.endswith("blocks.0.attn.to_q.lora_A.weight") else 1) for k, v in held.items()}, file)
    with pytest.raises(AssertionError):
        check("SD3", tmp_path, wanted, 2)
