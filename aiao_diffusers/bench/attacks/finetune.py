"""Ordinary fine-tuning: all weights, or a LoRA by peft. The training objective is diffusers' noise prediction."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from ...denoiser.finetune import finetune
from ...denoiser.inputs import LatentData
from ...errors import ConfigError


__all__ = ["ATTENTION", "finetune", "full", "lora"]

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def full(denoiser: nn.Module, data: LatentData, scheduler: Any, **options: Any) -> nn.Module:
    """Fine-tune every weight of `denoiser`, in place; options as for `aiao_diffusers.denoiser.finetune.finetune`."""
    return finetune(denoiser.requires_grad_(True), data, scheduler, **options).requires_grad_(False)


def lora(
    denoiser: Any, data: LatentData, scheduler: Any, folder: str | Path, *, rank: int = 16, **options: Any
) -> Path:
    """Train a LoRA on the attention projections and write it as diffusers users do; `denoiser` is left as it was.

    Returns:
        the `.safetensors` file in `folder`.
    Raises:
        ConfigError: the denoiser takes no adapters.
    """
    if not hasattr(denoiser, "add_adapter"):
        raise ConfigError(f"{type(denoiser).__name__} takes no adapters: leave attacks by LoRA out of its suite.")
    denoiser.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(options.get("seed", 0))
        denoiser.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION)
        )
    try:
        finetune(denoiser, data, scheduler, **options)
        layers = get_peft_model_state_dict(denoiser)
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    finally:
        denoiser.unload_lora()
        denoiser.eval()
    return Path(folder) / "pytorch_lora_weights.safetensors"
