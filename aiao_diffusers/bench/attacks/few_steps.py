"""Distillation to few steps: the marked model learns to jump along its own trajectories, as latent consistency models do."""

import copy

import torch
from diffusers import DDPMScheduler
from torch import nn

from ...denoiser.schedule import noise_of, noise_schedule
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
        powers = noising.alphas_cumprod.to(device)
        for _ in range(steps):
            batch = context.data.take(torch.randint(len(context.data), (batch_size,)))
            x, keywords = batch.latents.to(device), batch.keywords(device)
            late = torch.randint(stride, len(powers), (batch_size,), device=device)
            noised, early = noising.add_noise(x, torch.randn_like(x), late), late - stride
            with torch.no_grad():
                noise = noise_of(noising, teacher(noised, late, **keywords).sample, noised, late)
                power = powers[early].view(-1, 1, 1, 1)
                jumped = power.sqrt() * picture(noised, noise, powers[late]) + (1 - power).sqrt() * noise
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


def picture(noised: torch.Tensor, noise: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """The clean latents that a noise prediction stands for; `power`: alphas_cumprod of each sample."""
    power = power.view(-1, 1, 1, 1)
    return (noised - (1 - power).sqrt() * noise) / power.sqrt()


def consistent(
    model: nn.Module,
    noised: torch.Tensor,
    t: torch.Tensor,
    noising: DDPMScheduler,
    keywords: dict[str, torch.Tensor],
) -> torch.Tensor:
    """The consistency function: the noised latents themselves at timestep 0, the predicted picture far from it."""
    scaled = (t * TIMESTEP_SCALING).view(-1, 1, 1, 1)
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    noise = noise_of(noising, model(noised, timestep=t, **keywords).sample, noised, t)
    return skip * noised + out * picture(noised, noise, noising.alphas_cumprod.to(noised)[t])
