"""Ordinary fine-tuning: all weights, or a LoRA by peft. The training objective is diffusers' noise prediction."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from ...data import LatentData
from ...record import noise_schedule


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def finetune(
    denoiser: nn.Module,
    data: LatentData,
    scheduler: Any,
    *,
    steps: int,
    lr: float,
    batch_size: int = 16,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train whatever requires a gradient, in place: AdamW without decay, constant learning rate, gradients clipped to 1.

    Args:
        data: latents of the new style or subject; scheduler: the noise schedule.
    """
    optimizer = torch.optim.AdamW([p for p in denoiser.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    noising = noise_schedule(dict(scheduler.config))
    device = next(denoiser.parameters()).device
    denoiser.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(steps):
            batch = data.take(torch.randint(len(data), (batch_size,)))
            x = batch.latents.to(device)
            noise = torch.randn_like(x)
            t = torch.randint(int(noising.config["num_train_timesteps"]), (batch_size,), device=device)
            noised = noising.add_noise(x, noise, t)
            loss = F.mse_loss(denoiser(noised, t, **batch.keywords(device)).sample, noise)
            loss.backward()
            nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if callback is not None:
                callback(step + 1, loss.item())
    return denoiser.eval()


def full(denoiser: nn.Module, data: LatentData, scheduler: Any, **options: Any) -> nn.Module:
    """Fine-tune every weight of `denoiser`, in place; options as for `finetune`."""
    return finetune(denoiser.requires_grad_(True), data, scheduler, **options).requires_grad_(False)


def lora(
    denoiser: Any, data: LatentData, scheduler: Any, folder: str | Path, *, rank: int = 16, **options: Any
) -> Path:
    """Train a LoRA on the attention projections and write it as diffusers users do; `denoiser` is left as it was.

    Returns:
        the `.safetensors` file in `folder`.
    """
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
