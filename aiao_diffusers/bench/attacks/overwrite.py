"""Embed marks of the attacker's own over the owner's."""

import hashlib
from dataclasses import dataclass

from torch import nn

from ...embedding.embed import EmbedConfig, embed
from ...mark.key import WatermarkKey
from ..context import AttackContext
from ..registry import attack


@attack("overwrite", strength="steps")
@dataclass(frozen=True)
class Overwriting:
    """Embed `count` keys of the attacker's own, one after the other, by the owner's procedure, but louder, at any price, and without
    the pull towards the weights that are to be overwritten. `pairs`: with a mask for each pair of sites."""

    steps: int = 200
    lr: float = 5e-4
    batch_size: int = 8
    count: int = 1
    in_sites: int = 5
    out_sites: int = 7
    response: float = 1.0
    pairs: bool = False

    def __call__(self, denoiser: nn.Module, context: AttackContext) -> nn.Module:
        """Overwrite the mark of `denoiser`, in place."""
        config = EmbedConfig(
            steps=self.steps,
            lr=self.lr,
            batch_size=self.batch_size,
            # The defaults are the procedure's own: as many, or as many as there are.
            in_sites=None if self.in_sites == Overwriting.in_sites else self.in_sites,
            out_sites=None if self.out_sites == Overwriting.out_sites else self.out_sites,
            response=self.response,
            pairs=self.pairs,
            anchor=0.0,
            max_price=None,
            seed=context.seed,
        )
        for number in range(self.count):
            embed(denoiser, attacker_key(context.seed, number), context.data, config, scheduler=context.scheduler)
        return denoiser.eval().requires_grad_(False)


def attacker_key(seed: int, number: int) -> WatermarkKey:
    """A key that no owner has."""
    return WatermarkKey(hashlib.sha256(f"attacker/{seed}/{number}".encode()).digest(), "Attacker")
