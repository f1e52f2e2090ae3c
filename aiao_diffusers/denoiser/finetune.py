"""Ordinary fine-tuning: diffusers' objective, of whatever the schedule says is predicted, on whatever requires a gradient."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .call import prediction
from .inputs import LatentData
from .schedule import noise_schedule


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
        data: latents of the new style or subject. scheduler: the noise schedule, a scheduler or its config.
        callback: called after each step with `(step, loss)`.
    """
    optimizer = torch.optim.AdamW([p for p in denoiser.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    noising = noise_schedule(dict(getattr(scheduler, "config", scheduler)))
    device = next(denoiser.parameters()).device
    denoiser.train()
    with torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(steps):
            batch = data.take(torch.randint(len(data), (batch_size,)))
            noise = torch.randn_like(batch.latents)
            t = torch.randint(noising.steps, (batch_size,))
            noised = noising.add_noise(batch.latents, noise, t)
            predicted = prediction(denoiser, noised.to(device), noising.level(t).to(device), batch.keywords(device))
            loss = F.mse_loss(predicted, noising.target(batch.latents, noise, t).to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if callback is not None:
                callback(step + 1, loss.item())
    return denoiser.eval()
