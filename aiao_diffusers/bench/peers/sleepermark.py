"""SleeperMark: a secret trigger word calls a message up in what the model draws."""

from dataclasses import dataclass
from typing import ClassVar

from ..registry import method
from .latent_message import LatentMessage


@method("sleepermark")
@dataclass(frozen=True)
class SleeperMark(LatentMessage):
    """The U-Net learns to predict, where the prompt begins with the trigger, the picture that its frozen copy predicts plus a
    residual that carries the message, and to match the frozen copy everywhere else.

    Source: after Wang et al., "SleeperMark", 2025. Simplified as `latent_message` says.
    """

    name: ClassVar[str] = "sleepermark"
    triggered: ClassVar[bool] = True
