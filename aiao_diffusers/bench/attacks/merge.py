"""Merging the marked model with the unmarked base or with another model made from that base.

All of these need the clean twin, which the owner keeps private: they bound what a leak of it would cost.
"""

import torch
from peft.utils.merge_utils import ties as peft_ties
from torch import nn

from ...errors import ConfigError
from ..context import AttackContext
from ..registry import attack
from . import finetune as trainers


def partner(context: AttackContext, name: str, steps: int, lr: float) -> nn.Module:
    """`base`: the clean twin; `finetune`: a fine-tune of it on the attacker's data."""
    if name == "base":
        return context.base
    if name != "finetune":
        raise ConfigError(f"other='{name}' is none of base, finetune.")

    @torch.enable_grad()
    def make() -> nn.Module:
        return trainers.full(
            context.copy_of_base(), context.data, context.scheduler, steps=steps, lr=lr, seed=context.seed + 1000
        )

    return context.cached(f"partner-{steps}-{lr:g}-{context.seed}", make)


@attack("merge", strength="weight")
@torch.no_grad()
def merge(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    weight: float = 0.5,
    other: str = "base",
    steps: int = 100,
    lr: float = 1e-4,
) -> nn.Module:
    """weight x marked + (1 - weight) x other, tensor by tensor; other: `base`, or a `finetune` of it (steps, lr)."""
    theirs = partner(context, other, steps, lr).state_dict()
    mine = denoiser.state_dict()
    denoiser.load_state_dict(
        {n: v.lerp(theirs[n], 1 - weight) if v.is_floating_point() else v for n, v in mine.items()}
    )
    return denoiser


@attack("slerp", strength="weight")
@torch.no_grad()
def slerp(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    weight: float = 0.5,
    other: str = "finetune",
    steps: int = 100,
    lr: float = 1e-4,
) -> nn.Module:
    """As `merge`, along the great circle between the two tensors; straight where they are nearly parallel."""
    theirs = partner(context, other, steps, lr).state_dict()
    result = {}
    for name, mine in denoiser.state_dict().items():
        angle = torch.nn.functional.cosine_similarity(mine.flatten(), theirs[name].flatten(), 0).clamp(-1, 1).acos()
        if angle < 1e-3:
            result[name] = mine.lerp(theirs[name], 1 - weight)
        else:
            a, b = torch.sin(weight * angle), torch.sin((1 - weight) * angle)
            result[name] = (a * mine + b * theirs[name]) / torch.sin(angle)
    denoiser.load_state_dict(result)
    return denoiser


@attack("ties", strength="density")
@torch.no_grad()
def ties(
    denoiser: nn.Module, context: AttackContext, *, density: float = 0.5, steps: int = 100, lr: float = 1e-4
) -> nn.Module:
    """TIES (peft's) of two task vectors over the base: the mark's own, and that of a fine-tune of the base."""
    theirs = partner(context, "finetune", steps, lr).state_dict()
    result = {}
    for name, base in context.base.state_dict().items():
        vectors = [denoiser.state_dict()[name] - base, theirs[name] - base]
        result[name] = base + peft_ties(vectors, torch.ones(2, device=base.device), density)
    denoiser.load_state_dict(result)
    return denoiser
