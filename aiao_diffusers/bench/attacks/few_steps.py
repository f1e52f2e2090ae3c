"""Distillation to few steps: the marked model learns to jump along its own trajectories, as latent consistency models do."""

import copy

import torch
from torch import nn

from ...denoiser.call import Keywords, prediction
from ...denoiser.schedule import NoiseSchedule, noise_schedule, spread
from ..context import AttackContext
from ..registry import attack


SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # of LCM's boundary condition


@attack("lcm", strength="steps")
def lcm(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 200,
    lr: float = 1e-4,
    batch_size: int = 16,
    stride: int = 20,
    decay: float = 0.95,
) -> nn.Module:
    """Latent consistency distillation on the attacker's data: student, teacher and averaged target all start marked.

    stride: timesteps that one DDIM step of the frozen teacher jumps. decay: of the target's moving average.
    Source: Luo et al., "Latent Consistency Models", 2023. Simplified: the teacher's step is not guided, so no guidance scale
    is embedded, and the distance is their pseudo-Huber one.
    """
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        teacher, target = copy.deepcopy(denoiser).eval(), copy.deepcopy(denoiser).eval().requires_grad_(False)
        student = denoiser.train().requires_grad_(True)
        optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
        device = next(student.parameters()).device
        noising = noise_schedule(dict(context.scheduler.config))
        for _ in range(steps):
            batch = context.data.take(torch.randint(len(context.data), (batch_size,)))
            x, keywords = batch.latents.to(device), batch.keywords(device)
            late = torch.randint(stride, noising.steps, (batch_size,), device=device)
            noised, early = noising.add_noise(x, torch.randn_like(x), late), late - stride
            with torch.no_grad():
                predicted = prediction(teacher, noised, noising.level(late), keywords)
                signal, loud = (spread(amount, noised)[early] for amount in noising.amounts())
                jumped = signal * noising.latents_of(predicted, noised, late)
                jumped = jumped + loud * noising.noise_of(predicted, noised, late)
                wanted = consistent(target, jumped, early, noising, keywords)
            error = consistent(student, noised, late, noising, keywords) - wanted
            ((error.square() + 1e-6).sqrt() - 1e-3).mean().backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for kept, new in zip(target.parameters(), student.parameters(), strict=True):
                    kept.lerp_(new, 1 - decay)
    return student.eval().requires_grad_(False)


def consistent(
    model: nn.Module,
    noised: torch.Tensor,
    t: torch.Tensor,
    noising: NoiseSchedule,
    keywords: Keywords,
) -> torch.Tensor:
    """The consistency function: the noised latents themselves at timestep 0, the predicted picture far from it."""
    scaled = (t * TIMESTEP_SCALING).view(-1, *[1] * (noised.ndim - 1))
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    predicted = prediction(model, noised, noising.level(t), keywords)
    return skip * noised + out * noising.latents_of(predicted, noised, t)
