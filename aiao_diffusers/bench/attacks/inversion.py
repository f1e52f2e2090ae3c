"""Trigger inversion: climb to the masks that move the out-sites most, then train their effect away."""

import torch
from torch import nn

from ...embedding.losses import log_uniform
from ..context import AttackContext
from ..registry import attack
from .exposed_mark import ExposedMark, Masks, by_channel, everything, expose, harden


@attack("inversion", strength="steps")
def inversion(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 200,
    lr: float = 3e-4,
    batch_size: int = 8,
    starts: int = 16,
    ascent: int = 40,
    weight: float = 1.0,
) -> nn.Module:
    """Ascend to the masks that move the out-sites most, from `starts` random ones; then train their effect away."""
    with expose(denoiser, context) as target:
        found = invert(target, starts=starts, steps=ascent)

        def half_and_half(size: int) -> Masks:
            rows, fresh = torch.randint(starts, (size,)), torch.rand(size, 1).to(target.device) < 0.5
            return {name: torch.where(fresh, mask, found[name][rows]) for name, mask in target.masks(size).items()}

        harden(target, half_and_half, everything, steps=steps, lr=lr, batch_size=batch_size, weight=weight)
    return denoiser


def invert(target: ExposedMark, *, starts: int, steps: int, lr: float = 0.1) -> Masks:
    """Trigger inversion: Adam on real-valued masks of rms 1, on the mean square of what `by_channel` shows.

    Half of the starts arm every candidate in-site together, the others one each in turn.

    Returns:
        `(starts, C)` by in-site; zero where a start does not arm it.
    """
    denoiser = target.wired.denoiser.eval().requires_grad_(False)
    joint = torch.arange(starts) < starts // 2
    with torch.random.fork_rng():
        torch.manual_seed(target.context.seed)
        raw = {site.name: torch.randn(starts, site.width_out, device=target.device) for site in target.ins}
        armed = {
            site.name: (joint | (torch.arange(starts) % len(target.ins) == i))[:, None].float().to(target.device)
            for i, site in enumerate(target.ins)
        }

        def masks() -> Masks:
            return {n: armed[n] * v / v.square().mean(1, keepdim=True).sqrt() for n, v in raw.items()}

        optimizer = torch.optim.Adam([v.requires_grad_() for v in raw.values()], lr=lr)
        with torch.enable_grad():
            for _ in range(steps):
                amplitude = log_uniform(starts, 0.8, 2.5, target.device)
                _, moved = target.forward(target.draw(starts), masks(), amplitude)
                # A sum: each start climbs by itself.
                gain = torch.stack([by_channel(change).square().mean(1).sum() for change in moved.values()]).mean()
                (-gain).backward()
                optimizer.step()
                optimizer.zero_grad()
    denoiser.zero_grad()
    return {name: value.detach() for name, value in masks().items()}
