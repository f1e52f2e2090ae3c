"""How a denoiser is called."""

from typing import Any

import torch
from torch import nn


def prediction(
    denoiser: nn.Module, noised: torch.Tensor, timestep: torch.Tensor, conditioning: dict[str, Any]
) -> torch.Tensor:
    """What a denoiser predicts of `noised` `(B, C, ...)`, in that shape: without the variances that some models add."""
    return denoiser(noised, timestep=timestep, **conditioning).sample[:, : noised.shape[1]]
