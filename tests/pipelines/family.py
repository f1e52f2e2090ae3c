"""What the registry says of a family, and how its parts get weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn


Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Family:
    """One kind of pipeline at miniature size.

    Args:
        name: of the family, unique in the registry, in snake case.
        build: Returns a ready pipeline with random weights, the same at every call.
        options: the smallest keywords of a call, beside `prompt`, `num_inference_steps`, `generator` and `output_type`.
        video: whether its latents have frames.
        prompted: whether it takes `prompt`; one that does not is called with `batch_size` or with embeddings in `options`.
    """

    name: str
    build: Callable[[], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    video: bool = False
    prompted: bool = True


def seeded(make: Callable[..., Module], seed: int = 0, **config: Any) -> Module:
    """`make(**config)` with weights drawn from `seed`, in evaluation mode; the global generator stays where it was.

    Parameters that start out constant get noise: zero gates, modulations and last layers would hide the rest.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = make(**config).eval()
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.is_floating_point() and parameter.min() == parameter.max():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
