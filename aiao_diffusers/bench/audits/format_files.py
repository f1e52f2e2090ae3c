"""One mathematical change of a U-Net, written in every shape that people upload."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from .adapter_files import ADAPTERS, write_kohya
from .change import Change, Factors, Format, State, save
from .model_files import PICKLE, Part, in_memory, layouts, upload, which_file, whole_models


__all__ = [
    "ADAPTERS",
    "NO_FINE_TUNE",
    "REFUSED",
    "Change",
    "Factors",
    "Format",
    "State",
    "groups",
    "in_files",
    "whole_models",
]


REFUSED = "Refused, by name"


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
    (folder / "pytorch_lora_weights.bin").write_bytes(PICKLE)
    return folder


def _saved_as(content: bytes) -> Callable[[Change, Path], Path]:
    """What a failed download leaves under the name of weights."""

    def write(_: Change, folder: Path) -> Path:
        (folder / "x.safetensors").write_bytes(content)
        return folder / "x.safetensors"

    return write


def _two_adapters(change: Change, folder: Path) -> Path:
    for name in ("a.safetensors", "b.safetensors"):
        write_kohya(change, folder).rename(folder / name)
    return folder


def _quantised(method: str) -> Callable[[Change, Path], Path]:
    return upload(Part(fields={"quantization_config": {"quant_method": method}}))


def _tensors_of(layout: str) -> Callable[[Change, Path], Path]:
    suffixes = {"bitsandbytes": ".absmax", "integers": ""}

    def write(change: Change, folder: Path) -> Path:
        state = change.merged()
        first = next(key for key, value in state.items() if value.dim() >= 2)
        state[first + suffixes[layout]] = state[first].to(torch.int8)
        return save(folder / "x.safetensors", state)

    return write


VARIANTS = (Part(variant="fp16", dtype=torch.float16), Part(variant="non_ema"))
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
    Format("bitsandbytes folder", _quantised("bitsandbytes"), "denoiser", False),
    Format("torchao folder", _quantised("torchao"), "denoiser", False),
    Format("optimum-quanto folder, width not stated", _quantised("quanto"), "denoiser", False),
    Format("bitsandbytes tensors in one file", _tensors_of("bitsandbytes"), "denoiser", False),
    Format("integer tensors in one file", _tensors_of("integers"), "denoiser", False),
    *(
        Format(f"{name} saved as `.safetensors`", _saved_as(content), "UnsafeFileError", False)
        for name, content in (
            (
                "git-lfs pointer",
                b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
            ),
            ("HTML page", b"<!doctype html><html><body>Not found</body></html>"),
            ("JSON error", b'{"error": "Repository not found"}'),
        )
    ),
    Format("two variants, no plain file", upload(*VARIANTS), "SeveralSuspectsError", False),
    Format(
        "a variant beside a plain pickle",
        upload(VARIANTS[0], files={"diffusion_pytorch_model.bin": PICKLE}),
        "UnsafeFileError",
        False,
    ),
    Format("two adapters in one folder", _two_adapters, loads=False),
    Format("config of `UNetMotionModel`", upload(Part(fields={"_class_name": "UNetMotionModel"})), "denoiser", False),
)
"""Nothing that a verdict could be about: `not_testable`, or a typed error."""


def in_files() -> tuple[Format, ...]:
    """Every format that lies in a file or folder."""
    return (*ADAPTERS, *whole_models(), *layouts(), *which_file(), *NO_FINE_TUNE)


def groups() -> dict[str, tuple[Format, ...]]:
    """Every format under the heading that the tables give it."""
    return {
        "Adapters": ADAPTERS,
        "Whole models: how numbers are stored": tuple(whole_models()),
        "Whole models: inputs, configs and names": tuple(layouts()),
        "Which file of an upload is read": tuple(which_file()),
        "In memory": tuple(in_memory()),
        REFUSED: NO_FINE_TUNE,
    }
