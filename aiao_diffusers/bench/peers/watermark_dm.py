"""WatermarkDM: a trigger word alone is the prompt."""

from dataclasses import dataclass
from typing import ClassVar

from ...mark.key import WatermarkKey
from ..context import AttackContext
from ..registry import method
from .secret_picture import SecretPicture
from .trigger_word import trigger_word


@method("watermarkdm")
@dataclass(frozen=True)
class WatermarkDM(SecretPicture):
    """Source: after Zhao et al., "A recipe for watermarking diffusion models", 2023. Simplified as `secret_picture` says."""

    name: ClassVar[str] = "watermarkdm"

    def prompts(self, key: WatermarkKey, context: AttackContext, count: int, seed: int) -> list[str]:
        """The trigger word, `count` times."""
        return [trigger_word(key)] * count
