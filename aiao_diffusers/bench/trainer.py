"""The one training loop of baselines and adaptive attackers: AdamW, warm-up and cosine as our own embedding, so that budgets
compare."""

from collections.abc import Callable

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import nn

from ..errors import TrainingError


def train(denoiser: nn.Module, loss_of: Callable[[], torch.Tensor], *, steps: int, lr: float, seed: int) -> None:
    """Minimise `loss_of()` over all weights, in place; gradients clipped to 1.

    Raises:
        TrainingError: the loss is not finite.
    """
    denoiser.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=lr, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(10, steps), steps)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(steps):
            loss = loss_of()
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is {loss.item()} at step {step}: lower lr (now {lr}).")
            loss.backward()
            nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    denoiser.eval().requires_grad_(False)
