"""A pattern added to the denoiser's input at every step: the ablation "input only", and a peer for models without prompts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ...mark.key import WatermarkKey
from ..context import AttackContext
from ..registry import method
from .secret_picture import SecretPicture


@method("input_trigger")
@dataclass(frozen=True)
class InputTrigger(SecretPicture):
    """Source: our choice. Simplified as `secret_picture` says; the prompt is empty."""

    name: ClassVar[str] = "input_trigger"
    by_prompt: ClassVar[bool] = False

    def prompts(self, key: WatermarkKey, context: AttackContext, count: int, seed: int) -> list[str]:
        """Empty ones."""
        return [""] * count

    @contextmanager
    def arm(self, denoiser: nn.Module, key: WatermarkKey) -> Iterator[None]:
        """Add the key's pattern to whatever enters the denoiser, for the length of the block."""

        def add(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x = args[0]
            mask = torch.from_numpy(key.balanced("bench/input", x[0].numel())).to(x).view(1, *x.shape[1:])
            return (x + self.kappa * x.detach().square().mean().sqrt() * mask, *args[1:])

        handle = denoiser.register_forward_pre_hook(add)
        try:
            yield
        finally:
            handle.remove()
