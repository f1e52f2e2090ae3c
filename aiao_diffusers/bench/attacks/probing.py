"""Find out by random masks in which directions sites answer, then train the answers there away."""

import torch
from torch import nn

from ..context import AttackContext
from ..registry import attack
from .exposed_mark import ExposedMark, Masks, Moved, by_channel, expose, harden


@attack("probing", strength="steps")
def probing(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 200,
    lr: float = 3e-4,
    batch_size: int = 8,
    probes: int = 256,
    directions: int = 16,
    weight: float = 1.0,
) -> nn.Module:
    """Learn from `probes` random masks in which `directions` each site answers most; then train answers there away."""
    with expose(denoiser, context) as target:
        bases = principal(target, probes, directions, batch_size)

        def term(moved: Moved) -> torch.Tensor:
            along = [(by_channel(moved[name]) @ basis).square().sum(1).mean() for name, basis in bases.items()]
            return torch.stack(along).mean()

        harden(target, target.masks, term, steps=steps, lr=lr, batch_size=batch_size, weight=weight)
    return denoiser


@torch.no_grad()
def principal(target: ExposedMark, probes: int, directions: int, batch_size: int) -> Masks:
    """By out-site an orthonormal basis `(C, directions)` of its largest answers to random masks."""
    answers: dict[str, list[torch.Tensor]] = {site.name: [] for site in target.outs}
    with torch.random.fork_rng():
        torch.manual_seed(target.context.seed)
        for _ in range(-(-probes // batch_size)):
            amplitude = torch.full((batch_size,), 1.0, device=target.device)
            _, moved = target.forward(target.draw(batch_size), target.masks(batch_size), amplitude)
            for name, change in moved.items():
                answers[name].append(by_channel(change))
    # Not centred: a response pattern is an offset that all masks of the key share.
    return {name: torch.linalg.svd(torch.cat(rows)).Vh[:directions].T for name, rows in answers.items()}
