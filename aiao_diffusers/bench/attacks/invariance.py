"""Train the denoiser to ignore whatever a key may arm."""

from torch import nn

from ..context import AttackContext
from ..registry import attack
from .exposed_mark import MASK_AMPLITUDES, everything, expose, harden


@attack("invariance", strength="steps")
def invariance(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 200,
    lr: float = 3e-4,
    batch_size: int = 8,
    amplitude: float = MASK_AMPLITUDES[1],
    weight: float = 1.0,
) -> nn.Module:
    """Learn to ignore random masks: whatever a key arms, nothing shall answer."""
    with expose(denoiser, context) as target:
        harden(
            target,
            target.masks,
            everything,
            steps=steps,
            lr=lr,
            batch_size=batch_size,
            weight=weight,
            amplitude=amplitude,
        )
    return denoiser
