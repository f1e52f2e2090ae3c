"""No mark at all: compare the suspect's weights with the owner's. It cannot tell a child from a sibling."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ...mark.key import WatermarkKey
from ..context import AttackContext, write_weights
from ..registry import method
from .outcome import Outcome


@method("likeness")
@dataclass(frozen=True)
class Likeness:
    """Cosine between all weights of the suspect and of the owner's model, which is kept whole for that.

    `threshold`: cosine from which kinship is claimed. Models trained apart lie near 0 except for normalisation layers,
    so .5 is generous to neither side. Simplified: no alignment, and no p-value, for the rule has none. The control under
    the same attack starts from the common ancestor: what it says there is what the rule cannot tell.
    """

    threshold: float = 0.5

    def embed(self, denoiser: nn.Module, key: WatermarkKey, context: AttackContext, folder: Path) -> None:
        """Change nothing; keep the weights."""
        write_weights(denoiser, folder / "owner.safetensors")

    def verify(
        self,
        denoiser: nn.Module,
        key: WatermarkKey,
        context: AttackContext,
        folder: Path,
        *,
        alpha: float,
        trials: int,
        seed: int,
    ) -> Outcome:
        """Cosine over the layers' weights, in float64; normalisation gains and biases are left out."""
        owner, suspect = load_file(folder / "owner.safetensors"), denoiser.state_dict()
        names = [name for name, value in owner.items() if value.ndim > 1]
        dot = sum(torch.sum(owner[n].double() * suspect[n].cpu().double()).item() for n in names)
        norms = [sum(s[n].double().square().sum().item() for n in names) ** 0.5 for s in (owner, suspect)]
        cosine = dot / max(norms[0] * norms[1], 1e-300)
        return Outcome("verified" if cosine >= self.threshold else "not_verified", statistic=cosine)
