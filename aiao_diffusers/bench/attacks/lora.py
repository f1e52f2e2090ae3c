"""LoRAs by peft, trained on the marked model and fused at some scale, one or several."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ...denoiser.setup import slot_of
from ..context import AttackContext
from ..registry import attack
from . import finetune as trainers
from .dreambooth import subject_and_prior


@attack("lora", strength="scale")
def lora(
    denoiser: Any,
    context: AttackContext,
    *,
    rank: int = 16,
    steps: int = 200,
    lr: float = 1e-3,
    batch_size: int = 16,
    scale: float = 1.0,
    count: int = 1,
) -> nn.Module:
    """`count` LoRAs on the attention projections, each on its own share of the data, all fused at `scale`."""
    order = torch.randperm(len(context.data), generator=context.generator)
    with tempfile.TemporaryDirectory() as scratch:
        files = []
        for number, share in enumerate(order.chunk(count)):
            options = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": context.seed + number}
            data, folder = context.data.take(share), f"{scratch}/{number}"
            files.append(trainers.lora(denoiser, data, context.scheduler, folder, rank=rank, **options))
        for file in files:
            _fuse(denoiser, file, scale)
    return denoiser.requires_grad_(False)


@attack("dreambooth_lora", strength="steps")
def dreambooth_lora(
    denoiser: Any,
    context: AttackContext,
    *,
    rank: int = 16,
    steps: int = 200,
    lr: float = 5e-4,
    batch_size: int = 8,
    pictures: int = 5,
    prior: int = 32,
) -> nn.Module:
    """As `dreambooth`, by a LoRA on the attention projections, fused at scale 1."""
    data = subject_and_prior(denoiser, context, pictures, prior)
    options = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": context.seed}
    with tempfile.TemporaryDirectory() as scratch:
        _fuse(denoiser, trainers.lora(denoiser, data, context.scheduler, scratch, rank=rank, **options), 1.0)
    return denoiser.requires_grad_(False)


def _fuse(denoiser: Any, file: Path, scale: float) -> None:
    denoiser.load_lora_adapter(load_file(file), prefix=slot_of(denoiser))
    denoiser.fuse_lora(lora_scale=scale)
    denoiser.unload_lora()
