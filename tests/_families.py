"""A pipeline whose denoiser is called in a way that a test chooses, with a real scheduler."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn


WIDTH = 6


class Denoiser(nn.Module):
    """Takes what the families' denoisers take, and lets all of it act on the prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(
        self,
        hidden_states: Any,
        timestep: torch.Tensor | None = None,
        text: Any = None,
        mask: torch.Tensor | None = None,
        tables: Any = None,
        shapes: Any = None,
        wide: torch.Tensor | None = None,
        cache: Any = None,
        flag: bool = False,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        x = torch.stack(list(hidden_states)) if isinstance(hidden_states, list | tuple) else hidden_states
        row = (len(x), *[1] * (x.ndim - 1))
        total = x * self.scale + torch.sin(10 * timestep.float()).view(-1, *row[1:]).to(self.scale.dtype)
        if text is not None:
            kept = [None] * len(x) if mask is None else mask.float()[..., None]
            means = [(one if shown is None else one * shown).sum() for one, shown in zip(text, kept, strict=False)]
            total = total + torch.stack(means[: len(x)]).view(row)
        for table in tables or ():
            total = total + table.sum()
        if wide is not None:
            total = total + wide.mean((0, 2)).view(row)
        total = total + (2.0 if flag else 0.0) + (0.0 if shapes is None else sum(shape[0] for shape in shapes))
        return (total,) if not return_dict else SimpleNamespace(sample=total)


class Pipeline:
    """`call(self, latents, t, prompts)` gives the prediction for the scheduler."""

    def __init__(self, call: Callable[["Pipeline", torch.Tensor, torch.Tensor, list[str]], torch.Tensor]) -> None:
        self.transformer, self.scheduler, self.call = Denoiser(), FlowMatchEulerDiscreteScheduler(), call
        self.runs: list[int] = []

    @property
    def components(self) -> dict[str, Any]:
        return {"transformer": self.transformer, "scheduler": self.scheduler}

    def set_progress_bar_config(self, **config: Any) -> None:
        self._progress_bar_config = config

    def __call__(
        self,
        prompt: list[str],
        num_inference_steps: int = 20,
        guidance_scale: float = 4.0,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        size: int = 4,
    ) -> torch.Tensor:
        self.guidance = guidance_scale
        self.runs.append(len(prompt))
        latents = torch.randn(len(prompt), 3, size, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            latents = self.scheduler.step(self.call(self, latents, t, prompt), t, latents, return_dict=False)[0]
        return latents


def texts(prompts: list[str], length: int = 0) -> torch.Tensor:
    """`(n, S, WIDTH)`: a vector a letter, padded to the longest, or to `length`."""
    longest = max(length, *map(len, prompts))
    rows = torch.zeros(len(prompts), longest, WIDTH)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = torch.tensor([ord(letter) / 1e3 for letter in prompt])[:, None]
    return rows


def mask(prompts: list[str]) -> torch.Tensor:
    """`(n, S)`: which of them are letters."""
    return torch.arange(max(map(len, prompts)))[None] < torch.tensor([len(p) for p in prompts])[:, None]
