"""One mathematical change of a U-Net, written in every shape that people upload."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ...formats.module_names import ldm_names
from .adapter_files import ADAPTERS, write_kohya
from .change import Change, Factors, Format, State, save


__all__ = ["ADAPTERS", "NO_FINE_TUNE", "Change", "Factors", "Format", "State", "whole_models"]


def _only(key: str, *shape: int) -> Callable[[Change, Path], Path]:
    return lambda _, folder: save(folder / "x.safetensors", {key: torch.ones(shape)})


def _with_lora_bias(change: Change, folder: Path) -> Path:
    """As peft saves it: a bias for queries, where the U-Net has none."""
    file = write_kohya(change, folder)
    query = next(module for module in change.factors if module.endswith("to_q"))
    rows = len(change.weight(query))
    return save(file, load_file(file) | {f"lora_unet_{query.replace('.', '_')}.diff_b": torch.ones(rows)})


def _zero(change: Change, folder: Path) -> Path:
    return write_kohya(Change(change.base, {m: (a, b * 0) for m, (a, b) in change.factors.items()}), folder)


def _pickle(_: Change, folder: Path) -> Path:
    (folder / "pytorch_lora_weights.bin").write_bytes(b"\x80\x04.")
    return folder


def _writer_of_quantised(method: str) -> Callable[[Change, Path], Path]:
    def write(change: Change, folder: Path) -> Path:
        folder = _folder(change, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
        return folder

    return write


def _tensors_of(layout: str) -> Callable[[Change, Path], Path]:
    suffixes = {"bitsandbytes": ".absmax", "integers": ""}

    def write(change: Change, folder: Path) -> Path:
        state = change.merged()
        first = next(key for key, value in state.items() if value.dim() >= 2)
        state[first + suffixes[layout]] = state[first].to(torch.int8)
        return save(folder / "x.safetensors", state)

    return write


NO_FINE_TUNE = (
    Format("LoRA whose change is zero", _zero, loads=False),
    Format("textual inversion alone", _only("<toy>", 1, 128), "textual_inversion", False),
    Format(
        "text encoder's LoRA alone",
        _only("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", 2, 2),
        "text_encoder_only",
        False,
    ),
    Format("IP-Adapter", _only("image_proj.proj.weight", 4, 4), "ip_adapter", False),
    Format("ControlNet", _only("control_model.time_embed.0.weight", 4, 4), "controlnet", False),
    Format("AnimateDiff motion module", _only("down_blocks.0.motion_modules.0.w", 4, 4), "motion_adapter", False),
    *(
        Format(f"{name}, named and not read", _only(key, *shape), loads=False)
        for name, key, shape in (
            ("Custom Diffusion", "down_blocks.0.attn2.processor.to_k_custom_diffusion.weight", (4, 4)),
            ("SVDiff", "conv_in.delta", (4,)),
            ("LoRA with numbered layers", "unet:0:up", (4, 4)),
            ("FourierFT", "base_model.model.conv_in.fourierft_spectrum", (4,)),
            ("HRA", "base_model.model.conv_in.hra_u", (4, 2)),
            ("T-LoRA", "lora_unet_conv_in.lambda_layer", (1, 4)),
            ("IP-Adapter with a LoRA in it", "ip_adapter.1.to_q_lora.down.weight", (4, 4)),
        )
    ),
    Format("bias on layers without one (`lora_bias`)", _with_lora_bias, loads=False),
    Format(
        "text encoder alone in ComfyUI's names",
        _only("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight", 2, 2),
        "text_encoder_only",
        False,
    ),
    Format("FLUX LoRA", _only("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", 4, 3072), loads=False),
    Format("pickle (`.bin`)", _pickle, "UnsafeFileError", False),
    Format("bitsandbytes folder", _writer_of_quantised("bitsandbytes"), "denoiser", False),
    Format("torchao folder", _writer_of_quantised("torchao"), "denoiser", False),
    Format("optimum-quanto folder, width not stated", _writer_of_quantised("quanto"), "denoiser", False),
    Format("bitsandbytes tensors in one file", _tensors_of("bitsandbytes"), "denoiser", False),
    Format("integer tensors in one file", _tensors_of("integers"), "denoiser", False),
)
"""Nothing that a verdict could be about: `not_testable`, or a typed error."""


def _folder(change: Change, folder: Path, shard: str | None = None, dtype: torch.dtype | None = None) -> Path:
    base: Any = change.base  # ModelMixin's config methods are untyped
    model = type(base).from_config(base.config)
    model.load_state_dict(change.merged())
    options = {"max_shard_size": shard} if shard else {}
    if dtype is not None:
        options["variant"] = "fp16"
        model = model.to(dtype)
    model.save_pretrained(folder, **options)
    return folder


def _pipeline(change: Change, folder: Path) -> Path:
    _folder(change, folder / "unet")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


def original_state(change: Change) -> State:
    """The whole denoiser after the change, in original LDM keys."""
    state, names = change.merged(), ldm_names(dict(change.base.named_modules()))
    found = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        found[f"model.diffusion_model.{names[module]}.{leaf}"] = value
    return found


def _original(change: Change, folder: Path, extra: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    state = {key: value.to(dtype) for key, value in original_state(change).items()}
    if extra:
        averaged = {"model_ema." + k.removeprefix("model.").replace(".", ""): v + 1 for k, v in state.items()}
        state |= averaged | {"first_stage_model.decoder.conv_in.weight": torch.ones(8, 4, 3, 3)}
        state |= {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(7)[None]}
    return save(folder / "model.safetensors", state)


def _scaled_float8(change: Change, folder: Path) -> Path:
    state: State = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for key, value in original_state(change).items():
        state[key] = value
        if value.dim() == 2:
            scale = value.abs().amax() / 448
            state[key] = (value / scale).to(torch.float8_e4m3fn)
            state[key.removesuffix("weight") + "scale_weight"] = scale
    return save(folder / "model.safetensors", state)


def _quanto(change: Change, folder: Path) -> Path:
    """As diffusers saves a model that optimum-quanto holds in int8: linear layers alone."""
    folder = _folder(change, folder)
    state: State = {}
    for key, value in change.merged().items():
        state[key] = value
        if value.dim() == 2 and key.endswith(".weight"):
            scale = value.abs().amax(1, keepdim=True) / 127
            state[f"{key}._data"], state[f"{key}._scale"] = (value / scale).round().to(torch.int8), scale
            for note in ("input_scale", "output_scale"):
                state[f"{key.removesuffix('weight')}{note}"] = torch.ones(())
            del state[key]
    config = json.loads((folder / "config.json").read_text())
    stored = {"quant_method": "quanto", "weights_dtype": "int8", "modules_to_not_convert": None}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
    save(folder / "diffusion_pytorch_model.safetensors", state)
    return folder


def _gguf(change: Change, folder: Path, quantised: bool) -> Path:
    import gguf

    folder.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(folder / "model.gguf", "sd")
    for key, tensor in original_state(change).items():
        value = tensor.numpy()
        if quantised and value.ndim == 2 and value.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(key, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def whole_models() -> Iterator[Format]:
    """Checkpoints with the change fused in; GGUF where its package is installed."""
    yield Format("pipeline folder (DreamBooth, fused LoRA)", _pipeline, "pipeline")
    yield Format("denoiser folder", _folder, "denoiser")
    yield Format("denoiser folder, sharded", lambda c, f: _folder(c, f, "100KB"), "denoiser")
    half = torch.float16
    yield Format("denoiser folder, float16 variant", lambda c, f: _folder(c, f, None, half), "denoiser", rounding=0.01)
    yield Format("single file, diffusers keys", lambda c, f: save(f / "model.safetensors", c.merged()), "denoiser")
    yield Format("optimum-quanto int8 folder", _quanto, "denoiser", rounding=0.05)
    yield Format("single file, original keys, no VAE", _original, "single_file")
    yield Format("single file, with VAE, text and EMA", lambda c, f: _original(c, f, True), "single_file")
    brain, float8 = torch.bfloat16, torch.float8_e4m3fn
    yield Format("single file in bfloat16", lambda c, f: _original(c, f, False, brain), "single_file", rounding=0.1)
    yield Format("single file in float8", lambda c, f: _original(c, f, False, float8), "single_file", rounding=0.5)
    yield Format("single file in float8 with scales", _scaled_float8, "single_file", rounding=0.2)
    if importlib.util.find_spec("gguf") is not None:
        yield Format("GGUF, plain", lambda c, f: _gguf(c, f, False), "single_file")
        yield Format("GGUF, Q8_0", lambda c, f: _gguf(c, f, True), "single_file", rounding=0.05)
