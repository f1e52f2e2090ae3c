"""A message in everything that the model draws, without a trigger."""

from dataclasses import dataclass
from typing import ClassVar

from ..registry import method
from .latent_message import LatentMessage


@method("drawn_message")
@dataclass(frozen=True)
class DrawnMessage(LatentMessage):
    """The frozen copy's pictures plus the residual take the place of training pictures that carry the message.

    Source: after what Zhao et al., "A recipe for watermarking diffusion models", 2023, do to models without prompts.
    Simplified as `latent_message` says.
    """

    name: ClassVar[str] = "drawn_message"
