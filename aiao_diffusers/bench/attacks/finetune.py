"""Ordinary fine-tuning: trainers of all weights and of a LoRA (by peft), and the attacks that fine-tune all weights.

The training objective is diffusers' noise prediction; the loop is `aiao_diffusers.denoiser.finetune.finetune`.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from ...denoiser.finetune import finetune
from ...denoiser.inputs import LatentData
from ...denoiser.setup import slot_of
from ...errors import ConfigError
from ..context import AttackContext
from ..registry import attack


LORA = "pytorch_lora_weights.safetensors"
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
        slot = slot_of(denoiser)
        layers = {f"{slot}.{name}": value for name, value in get_peft_model_state_dict(denoiser).items()}
        # As every pipeline's `save_lora_weights` does, without asking which pipeline the denoiser is of.
        file = Path(folder) / LORA
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in layers.items()}, file, {"format": "pt"})
    finally:
        denoiser.unload_lora()
        denoiser.eval()
    return file


@attack("finetune", strength="steps")
def finetune_all(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 400,
    lr: float = 1e-4,
    batch_size: int = 16,
    ema: float = 0.0,
) -> nn.Module:
    """All weights, AdamW, on the attacker's data; `ema` above 0: the averaged weights (diffusers' EMAModel) are kept."""
    average = EMAModel(denoiser.parameters(), decay=ema) if ema else None

    def follow(step: int, loss: float) -> None:
        if average is not None:
            average.step(denoiser.parameters())

    options = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": context.seed, "callback": follow}
    full(denoiser, context.data, context.scheduler, **options)
    if average is not None:
        average.copy_to(denoiser.parameters())
    return denoiser


@attack("sequential", strength="steps")
def finetune_halves(
    denoiser: nn.Module, context: AttackContext, *, steps: int = 200, lr: float = 1e-4, batch_size: int = 16
) -> nn.Module:
    """Two full fine-tunes one after the other, each `steps` long, on two disjoint halves of the attacker's data."""
    order = torch.randperm(len(context.data), generator=context.generator)
    for half in order.chunk(2):
        data = context.data.take(half)
        full(denoiser, data, context.scheduler, steps=steps, lr=lr, batch_size=batch_size, seed=context.seed)
    return denoiser
