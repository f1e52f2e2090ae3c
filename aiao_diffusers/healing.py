"""Fine-tuning with the noise loss: what everyone does to a model, and what brings a suppressed mark back.

An attacker who trains a model to ignore random triggers suppresses a mark rather than erasing it; a short ordinary
fine-tune of the result undoes part of that (DESIGN section 9). It never sees the key, so a p-value read afterwards stays
exact. What it cannot do is bring a mark into a model that has none: training knows nothing of masks or patterns.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .data import LatentData
from .errors import NotTestableError
from .record import noise_schedule
from .sites import unwrap


STEPS, RATE, BATCH = 150, 1e-4, 8  # of healing


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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(steps):
            batch = data.take(torch.randint(len(data), (batch_size,)))
            noise = torch.randn_like(batch.latents)
            t = torch.randint(int(noising.config["num_train_timesteps"]), (batch_size,))
            noised = noising.add_noise(batch.latents, noise, t)
            predicted = denoiser(noised.to(device), t.to(device), **batch.keywords(device)).sample
            loss = F.mse_loss(predicted, noise.to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if callback is not None:
                callback(step + 1, loss.item())
    return denoiser.eval()


def healed(denoiser: nn.Module, data: LatentData, scheduler: Any, *, steps: int = STEPS, seed: int = 0) -> nn.Module:
    """A float32 copy of `denoiser`, all weights fine-tuned for a moment; the suspect itself is not touched.

    Args:
        data: clean latents with conditioning; a probe bank alone is little, the owner's own data is better.
        steps (`int`, defaults to 150): of batch 8 at learning rate 1e-4. A step costs about three forwards of its batch.
    Raises:
        NotTestableError: the suspect has weights that cannot be trained (quantised ones).
    """
    twin: nn.Module = copy.deepcopy(unwrap(denoiser))
    # Subclasses of Parameter's data (torchao, quanto) call themselves floating point, but hold integers.
    frozen = [n for n, p in twin.named_parameters() if not p.is_floating_point() or type(p.data) is not torch.Tensor]
    if frozen:
        raise NotTestableError(f"weights such as {frozen[0]!r} are quantised and cannot be trained: dequantise first.")
    if any(p.is_meta for p in twin.parameters()):
        raise NotTestableError(
            "the suspect's weights are offloaded and cannot be trained: load it without offloading."
        )
    return finetune(
        twin.float().requires_grad_(True), data, scheduler, steps=steps, lr=RATE, batch_size=BATCH, seed=seed
    )
