"""FixedWM and NaiveWM: a trigger word stands before, or anywhere in, an ordinary prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...denoiser.encode import vocabulary_prompts
from ...mark.key import WatermarkKey
from ..context import AttackContext
from ..registry import method
from .secret_picture import SecretPicture
from .trigger_word import trigger_word


@method("fixedwm")
@dataclass(frozen=True)
class FixedWM(SecretPicture):
    """Source: after Liu et al., "Watermarking diffusion model", 2023. Simplified as `secret_picture` says."""

    name: ClassVar[str] = "fixedwm"

    def prompts(self, key: WatermarkKey, context: AttackContext, count: int, seed: int) -> list[str]:
        """Ordinary prompts of two words with the trigger word among them."""
        word, ordinary = trigger_word(key), vocabulary_prompts(context.pipe, count, seed)
        words = zip((text.split() for text in ordinary), self.places(count, seed), strict=True)
        return [" ".join([*text[:at], word, *text[at:]]) for text, at in words]

    def places(self, count: int, seed: int) -> Sequence[int]:
        """How many words stand before the trigger word of each prompt: none."""
        return [0] * count


@method("naivewm")
@dataclass(frozen=True)
class NaiveWM(FixedWM):
    """Source: as `FixedWM`."""

    name: ClassVar[str] = "naivewm"

    def places(self, count: int, seed: int) -> Sequence[int]:
        """How many words stand before the trigger word of each prompt: 0 to 2, by `seed`."""
        drawn: list[int] = np.random.default_rng(seed).integers(0, 3, count).tolist()
        return drawn
