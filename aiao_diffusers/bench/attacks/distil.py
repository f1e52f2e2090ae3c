"""Distillation: a student learns what the marked model predicts, and takes none of its weights."""

import torch
import torch.nn.functional as F
from torch import nn

from ...denoiser.call import prediction
from ...denoiser.schedule import noise_schedule
from ..context import AttackContext
from ..registry import attack, known


@attack("distil", strength="steps")
def distil(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 400,
    lr: float = 5e-4,
    batch_size: int = 16,
    student: str = "base",
) -> nn.Module:
    """A student learns the marked model's noise predictions on the attacker's data.

    student: `base` starts from the clean twin (a leak of it), `fresh` from random weights.
    """
    known("student", student, ("base", "fresh"))
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        made = context.copy_of_base() if student == "base" else type(denoiser).from_config(denoiser.config)  # type: ignore[attr-defined]
        made = made.to(next(denoiser.parameters()).device).train().requires_grad_(True)
        optimizer = torch.optim.AdamW(made.parameters(), lr=lr, weight_decay=0.0)
        noising = noise_schedule(dict(context.scheduler.config))
        device = next(denoiser.parameters()).device
        for _ in range(steps):
            batch = context.data.take(torch.randint(len(context.data), (batch_size,)))
            x = batch.latents.to(device)
            t = torch.randint(noising.steps, (batch_size,), device=device)
            noised, keywords = noising.add_noise(x, torch.randn_like(x), t), batch.keywords(device)
            with torch.no_grad():
                wanted = prediction(denoiser, noised, noising.level(t), keywords)
            F.mse_loss(prediction(made, noised, noising.level(t), keywords), wanted).backward()
            nn.utils.clip_grad_norm_(made.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return made.eval().requires_grad_(False)
