"""FLUX and Stable Diffusion 3 adapters in original names: rows must land where diffusers' own converters put them."""

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import LoraNotLoadedError, WrongBaseError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.lora import apply_lora
from aiao_diffusers.formats.module_names import module_index, strip_wrappers


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("_orig_mod.conv_in.weight", "conv_in.weight"),
        ("module.unet.conv_in.weight", "conv_in.weight"),
        ("base_model.model.unet._orig_mod.down_blocks.0.x", "down_blocks.0.x"),
        ("model.diffusion_model._orig_mod.input_blocks.0.0.weight", "input_blocks.0.0.weight"),
        ("_fsdp_wrapped_module.transformer_blocks.0._fsdp_wrapped_module.attn.to_q", "transformer_blocks.0.attn.to_q"),
        ("down_blocks.0._checkpoint_wrapped_module.resnets.0", "down_blocks.0.resnets.0"),
        ("transformer.transformer_blocks.0.attn", "transformer_blocks.0.attn"),
        ("my_orig_mod.x", "my_orig_mod.x"),
        ("conv_in.unet.weight", "conv_in.unet.weight"),
        ("cond_stage_model.transformer.text_model.x", "cond_stage_model.transformer.text_model.x"),
    ],
)
def test_wrappers_come_off_whatever_their_order(name, plain):
    assert strip_wrappers(name) == plain


def test_a_long_name_takes_no_long_time():
    assert strip_wrappers("module." * 300_000 + "x") == "x"
    assert strip_wrappers("_orig_mod." * 300_000 + "module.x") == "x"


def tiny_flux(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    ).eval()


def tiny_sd3(seed: int = 0, layers: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ).eval()


def run(model: nn.Module) -> torch.Tensor:
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        if isinstance(model, FluxTransformer2DModel):
            return model(
                hidden_states=torch.randn(1, 4, 4, generator=g),
                encoder_hidden_states=torch.randn(1, 3, 12, generator=g),
                pooled_projections=torch.randn(1, 10, generator=g),
                timestep=torch.tensor([0.5]),
                img_ids=torch.zeros(4, 3),
                txt_ids=torch.zeros(3, 3),
                guidance=torch.tensor([3.0]),
            ).sample
        return model(
            hidden_states=torch.randn(1, 4, 8, 8, generator=g),
            encoder_hidden_states=torch.randn(1, 3, 12, generator=g),
            pooled_projections=torch.randn(1, 10, generator=g),
            timestep=torch.tensor([500]),
        ).sample


FLUX_ROWS = {
    "time_in.in_layer": 1,
    "time_in.out_layer": 1,
    "vector_in.in_layer": 1,
    "vector_in.out_layer": 1,
    "guidance_in.in_layer": 1,
    "guidance_in.out_layer": 1,
    "txt_in": 1,
    "img_in": 1,
    **{
        f"double_blocks.0.{side}_{name}": rows
        for side in ("img", "txt")
        for name, rows in (("mod.lin", 6), ("attn.qkv", 3), ("attn.proj", 1), ("mlp.0", 4), ("mlp.2", 1))
    },
    "single_blocks.0.modulation.lin": 3,
    "single_blocks.0.linear1": 7,
    "single_blocks.0.linear2": 1,
    "final_layer.linear": 1,
    "final_layer.adaLN_modulation.1": 2,
}
FLUX_NORMS = [f"double_blocks.0.{side}_attn.norm.{w}_norm" for side in ("img", "txt") for w in ("query", "key")]
FLUX_NORMS += [f"single_blocks.0.norm.{w}_norm" for w in ("query", "key")]
SD3_ROWS = {
    "x_embedder.proj": 1,
    "context_embedder": 1,
    **{f"{e}_embedder.mlp.{n}": 1 for e in "ty" for n in (0, 2)},
    **{
        f"joint_blocks.{block}.{side}_block.{name}": rows
        for block in (0, 1)
        for side in ("x", "context")
        for name, rows in (("attn.qkv", 3), ("attn.proj", 1), ("mlp.fc1", 4), ("mlp.fc2", 1))
        if name == "attn.qkv" or (block, side) != (1, "context")
    },
    "joint_blocks.0.x_block.attn2.qkv": 3,
    "joint_blocks.0.x_block.attn2.proj": 1,
    "joint_blocks.0.x_block.adaLN_modulation.1": 9,
    "joint_blocks.1.x_block.adaLN_modulation.1": 6,
    "joint_blocks.0.context_block.adaLN_modulation.1": 6,
    "joint_blocks.1.context_block.adaLN_modulation.1": 2,
    "final_layer.linear": 1,
    "final_layer.adaLN_modulation.1": 2,
}


def numbered(rows: dict[str, int], width: int) -> dict[str, torch.Tensor]:
    """A checkpoint in original names whose rows carry a number each, so that a converter shows where they go."""
    state, start = {}, 0
    for name, count in rows.items():
        state[f"{name}.weight"] = torch.arange(start, start + count * width).unsqueeze(1).double()
        state[f"{name}.bias"] = torch.arange(start, start + count * width).double()
        start += count * width
    return state


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_rows_lie_where_the_converter_of_diffusers_puts_them(family):
    if family == "flux":
        native = numbered(FLUX_ROWS, 3072)  # the converter knows this width alone
        extra = {f"{name}.scale": torch.ones(1) for name in FLUX_NORMS}
        converted = convert_flux_transformer_checkpoint_to_diffusers({**native, **extra})
        index = module_index(tiny_flux())
    else:
        native = numbered(SD3_ROWS, 16)
        converted = convert_sd3_transformer_checkpoint_to_diffusers({**native, "pos_embed": torch.ones(1)})
        index = module_index(tiny_sd3())
    for key, wanted in native.items():
        name, _, kind = key.rpartition(".")
        target = index[name]
        assert index[name.replace(".", "_")] == target
        rows = [converted[f"{p.module}.{kind}"].chunk(p.pieces)[p.piece] for p in target.parts]
        assert torch.equal(torch.cat(rows), wanted), key


# Written by hand: original name -> the modules of diffusers that it fuses.
FLUX_FUSED = {
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
    "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"],
    "double_blocks.0.img_attn.proj": ["transformer_blocks.0.attn.to_out.0"],
    "double_blocks.0.txt_mlp.2": ["transformer_blocks.0.ff_context.net.2"],
    "single_blocks.0.linear1": [f"single_transformer_blocks.0.{x}" for x in ("attn.to_q", "attn.to_k", "attn.to_v")]
    + ["single_transformer_blocks.0.proj_mlp"],
    "single_blocks.0.linear2": ["single_transformer_blocks.0.proj_out"],
}
XLABS = {
    "double_blocks.0.img_attn.qkv": "double_blocks.0.processor.qkv_lora1",
    "double_blocks.0.txt_attn.qkv": "double_blocks.0.processor.qkv_lora2",
    "double_blocks.0.img_attn.proj": "double_blocks.0.processor.proj_lora1",
}
SD3_FUSED = {
    "joint_blocks.0.x_block.attn.qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
    "joint_blocks.1.context_block.attn.qkv": [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"],
    "joint_blocks.0.x_block.attn2.proj": ["transformer_blocks.0.attn2.to_out.0"],
    "joint_blocks.0.context_block.mlp.fc1": ["transformer_blocks.0.ff_context.net.0.proj"],
}


def adapter(model: nn.Module, fused: dict[str, list[str]], layout: str, path) -> int:
    """Write one random LoRA of rank 3 and alpha 2 in original names, and patch `model` by hand."""
    g, state, touched = torch.Generator().manual_seed(1), {}, 0
    for native, modules in fused.items():
        weights = [model.get_submodule(name).weight for name in modules]
        down = torch.randn(3, weights[0].shape[1], generator=g) * 0.3
        up = torch.randn(sum(len(w) for w in weights), 3, generator=g) * 0.3
        for weight, rows in zip(weights, (up @ down * 2 / 3).split([len(w) for w in weights]), strict=True):
            weight.data += rows
        touched += len(modules)
        if layout == "xlabs":
            state |= {f"{XLABS[native]}.down.weight": down, f"{XLABS[native]}.up.weight": up * 2 / 3}
            continue
        if layout == "kohya":
            stem, a, b = "lora_unet_" + native.replace(".", "_"), "lora_down", "lora_up"
        else:
            stem, a, b = f"diffusion_model.{native}", "lora_A", "lora_B"
        state |= {f"{stem}.{a}.weight": down, f"{stem}.{b}.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return touched


@pytest.mark.parametrize(
    ("make", "fused", "layout"),
    [
        (tiny_flux, FLUX_FUSED, "kohya"),
        (tiny_flux, FLUX_FUSED, "diffusers"),
        (tiny_flux, {k: FLUX_FUSED[k] for k in XLABS}, "xlabs"),
        (tiny_sd3, SD3_FUSED, "kohya"),
        (tiny_sd3, SD3_FUSED, "diffusers"),
    ],
)
def test_equals_patched_weights_and_restores(tmp_path, make, fused, layout):
    model, reference = make(), make()
    touched, before, bare = (
        adapter(reference, fused, layout, tmp_path / "x.safetensors"),
        tensor_sha256(model),
        run(model),
    )
    with apply_lora(model, tmp_path / "x.safetensors") as loaded:
        torch.testing.assert_close(run(model), run(reference), rtol=0, atol=1e-5)
    assert (loaded.kind, loaded.modules, loaded.unused_keys) == (layout, touched, ())
    assert (run(reference) - bare).abs().max() > 1e-3 and tensor_sha256(model) == before


def test_a_final_norm_keeps_its_order_and_alpha(tmp_path):
    """diffusers' own converter drops this alpha."""
    model, reference = tiny_flux(), tiny_flux()
    down, up = torch.randn(3, 16), torch.randn(32, 3)
    delta = (up @ down) * 2 / 3
    reference.norm_out.linear.weight.data += torch.cat([delta[16:], delta[:16]])  # (shift, scale) -> (scale, shift)
    stem = "lora_unet_final_layer_adaLN_modulation_1"
    state = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
    save_file(state, tmp_path / "x.safetensors")
    with apply_lora(model, tmp_path / "x.safetensors") as loaded:
        torch.testing.assert_close(run(model), run(reference), rtol=0, atol=1e-5)
    assert loaded.modules == 1


def test_dora_norms_are_those_of_the_fused_weight(tmp_path):
    """By input column the norm runs over q, k and v together; taken one by one it would be another adapter."""
    model = tiny_flux()
    names = FLUX_FUSED["double_blocks.0.img_attn.qkv"]
    fused = torch.cat([model.get_submodule(n).weight.data for n in names])
    down, up, magnitude = torch.randn(2, 16), torch.randn(48, 2), 1 + torch.rand(1, 16)
    value = fused + up @ down
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    state = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.dora_scale": magnitude}
    save_file(state, tmp_path / "x.safetensors")
    with apply_lora(model, tmp_path / "x.safetensors") as loaded:
        mine = torch.cat([model.get_submodule(n).weight.data for n in names])
    torch.testing.assert_close(mine, value * magnitude / value.norm(dim=0, keepdim=True), rtol=1e-5, atol=1e-6)
    assert loaded.kind == "dora" and loaded.modules == 3


def test_an_adapter_of_the_other_family(tmp_path):
    adapter(tiny_flux(), FLUX_FUSED, "kohya", tmp_path / "flux.safetensors")
    adapter(tiny_sd3(), SD3_FUSED, "kohya", tmp_path / "sd3.safetensors")
    for model, name, wanted in ((tiny_sd3(), "flux", "FLUX.1"), (tiny_flux(), "sd3", "Stable Diffusion 3")):
        with (
            pytest.raises(LoraNotLoadedError, match=f"looks made for {wanted}"),
            apply_lora(model, tmp_path / f"{name}.safetensors"),
        ):
            pass


def test_original_single_file_of_sd3(tmp_path):
    """Round trip by the inverse of our own table, read by diffusers' converter."""
    model, base = tiny_sd3(seed=3), tiny_sd3()
    own = model.state_dict()
    index, state = module_index(model), {"pos_embed": own["pos_embed.pos_embed"]}
    for native in SD3_ROWS:
        for kind in ("weight", "bias"):
            rows = [own[f"{p.module}.{kind}"].chunk(p.pieces)[p.piece] for p in index[native].parts]
            state[f"{native}.{kind}"] = torch.cat(rows)
    for block in (0, 1):
        for side, added in (("x", ""), ("context", "added_")):
            for x in "qk":
                norm = own[f"transformer_blocks.{block}.attn.norm_{added}{x}.weight"]
                state[f"joint_blocks.{block}.{side}_block.attn.ln_{x}.weight"] = norm
    for x in "qk":
        state[f"joint_blocks.0.x_block.attn2.ln_{x}.weight"] = own[f"transformer_blocks.0.attn2.norm_{x}.weight"]
    for prefix in ("", "model.diffusion_model."):
        save_file({prefix + k: v.contiguous().clone() for k, v in state.items()}, tmp_path / "x.safetensors")
        assert tensor_sha256(load_denoiser(tmp_path / "x.safetensors", base=base)) == tensor_sha256(model)
    with pytest.raises(WrongBaseError, match="numbers of a denoiser"):
        load_denoiser(tmp_path / "x.safetensors", base=tiny_sd3(layers=3))
