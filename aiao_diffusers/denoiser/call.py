"""How a denoiser is called."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn


def prediction(
    denoiser: nn.Module, noised: torch.Tensor, timestep: torch.Tensor, conditioning: dict[str, Any]
) -> torch.Tensor:
    """What a denoiser predicts of `noised` `(B, C, ...)`, in that shape: without the variances that some models add."""
    return denoiser(noised, timestep=timestep, **conditioning).sample[:, : noised.shape[1]]


class CallInputs(NamedTuple):
    """What a denoiser is called with, where it is and in its dtype.

    Attributes:
        sample (`torch.Tensor`): noised latents, `(B, C, ...)`.
        timestep (`torch.Tensor`): `(B,)`.
        conditioning (`Mapping[str, Any]`): keyword tensors, `(B, ...)` each; a dictionary nests one level.
    """

    sample: torch.Tensor
    timestep: torch.Tensor
    conditioning: Mapping[str, Any]
