"""Retrain only the layers that look as if they carry the mark."""

import copy

from torch import nn

from ...denoiser.finetune import finetune
from ...embedding.layer_profile import profile
from ..context import AttackContext
from ..registry import attack
from .invariance import invariance


@attack("targeted", strength="steps")
def targeted(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 200,
    lr: float = 1e-3,
    batch_size: int = 16,
    guess: int = 50,
    share: float = 0.3,
) -> nn.Module:
    """Retrain, at a high rate, the `share` of layers that an invariance run of `guess` steps moves most."""
    moved = invariance(copy.deepcopy(denoiser), context, steps=guess)
    busy = profile(denoiser, moved).busiest(denoiser, share)
    denoiser.requires_grad_(False)
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_(name in busy)
    finetune(denoiser, context.data, context.scheduler, steps=steps, lr=lr, batch_size=batch_size, seed=context.seed)
    return denoiser.eval().requires_grad_(False)
