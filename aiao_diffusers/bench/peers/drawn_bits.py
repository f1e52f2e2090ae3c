"""What peers have in common whose mark is secret bits in what a model draws: fields of trainer and reader, and the rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from ...errors import ConfigError
from ...mark.key import WatermarkKey
from ..context import AttackContext
from .outcome import Outcome, outcome_of_bits


@dataclass(frozen=True)
class DrawnBits:
    """A trial is one picture, drawn from noise of its own.

    Args:
        steps (`int`), lr (`float`), batch_size (`int`): of training. sampling (`int`): steps of one verification picture, guidance
            off: a trial costs so many evaluations.
    """

    name: ClassVar[str] = ""
    steps: int = 600
    lr: float = 5e-4
    batch_size: int = 8
    sampling: int = 8

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.sampling) < 1 or not self.lr > 0:
            raise ConfigError("steps, batch_size, sampling and lr must be positive.")

    @torch.no_grad()
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
        """Draw `trials` pictures; the median split of what is read of them against the secret."""
        read = self.read(denoiser, key, context, [seed * 10_000 + i for i in range(trials)], seed + 1)
        return outcome_of_bits(read, self.secret(key), alpha=alpha, evals=trials * self.sampling)

    def secret(self, key: WatermarkKey) -> np.ndarray:
        """The bits, `(bits,)` of +-1, balanced."""
        raise NotImplementedError

    def read(
        self, denoiser: nn.Module, key: WatermarkKey, context: AttackContext, seeds: Sequence[int], text_seed: int
    ) -> np.ndarray:
        """What pictures say of each bit, `(pictures, bits)`.

        Args:
            seeds: of the pictures' noise, one each. text_seed: of their prompts.
        """
        raise NotImplementedError
