"""What a denoiser is trained and probed on: rows of clean latents with their conditioning."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..errors import DataError
from ..files.atomic import write_whole


@dataclass(frozen=True)
class LatentData:
    """Clean latents and the conditioning that belongs to each.

    Args:
        latents (`torch.Tensor`): scaled as the denoiser sees them, `(N, C, H, W)`, float32.
        conditioning (`dict[str, torch.Tensor]`): the denoiser's keyword tensors, `(N, ...)` each; a dotted name such as
            `added_cond_kwargs.text_embeds` goes into a nested dictionary. Empty for unconditional denoisers.
    Raises:
        DataError: no latents, lengths differ, or a value is not finite.
    """

    latents: torch.Tensor
    conditioning: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        if self.latents.ndim < 3 or not len(self.latents):
            raise DataError(f"latents of shape {tuple(self.latents.shape)} hold no samples: pass at least one image.")
        for name, value in {"latents": self.latents, **self.conditioning}.items():
            if not value.ndim or len(value) != len(self.latents):
                raise DataError(
                    f"'{name}' has {len(value) if value.ndim else 'no'} rows, the latents have {len(self.latents)}."
                )
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise DataError(f"'{name}' holds NaN or infinite values: check the images and the VAE.")
            if name.partition(".")[0] != name and name.partition(".")[0] in self.conditioning:
                raise DataError(
                    f"'{name}' would go into the dictionary that '{name.partition('.')[0]}' is: name one of them."
                )

    def __len__(self) -> int:
        return len(self.latents)

    def take(self, index: torch.Tensor) -> "LatentData":
        """The rows `index`."""
        return LatentData(self.latents[index], {name: value[index] for name, value in self.conditioning.items()})

    def keywords(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Conditioning as the denoiser's keyword arguments."""
        result: dict[str, Any] = {}
        for name, value in self.conditioning.items():
            value = value.to(device, dtype) if value.is_floating_point() else value.to(device)
            outer, _, inner = name.partition(".")
            if inner:
                result.setdefault(outer, {})[inner] = value
            else:
                result[outer] = value
        return result

    def save(self, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Cache as safetensors, floating point in `dtype`; written whole or not at all."""
        tensors = {"latents": self.latents, **{f"cond.{name}": value for name, value in self.conditioning.items()}}
        stored = {n: (v.to(dtype) if v.is_floating_point() else v).contiguous() for n, v in tensors.items()}
        with write_whole(Path(path)) as partial:
            save_file(stored, partial)

    @classmethod
    def load(cls, path: str | Path) -> "LatentData":
        """Read what `save` wrote; floating point comes back as float32."""
        try:
            with safe_open(str(path), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except Exception as error:  # safetensors raises its own class, a plain Exception
            raise DataError(f"'{path}' cannot be read as cached latents ({error}).") from error
        if "latents" not in tensors:
            raise DataError(
                f"'{path}' has no tensor 'latents', only {sorted(tensors)[:5]}: was it made by LatentData?"
            )
        tensors = {n: v.float() if v.is_floating_point() else v for n, v in tensors.items()}
        latents = tensors.pop("latents")
        return cls(latents, {name.removeprefix("cond."): value for name, value in tensors.items()})


def fitting(data: LatentData, denoiser: Any) -> LatentData:
    """The conditioning that `denoiser` takes, by its forward's signature: latents cached with captions serve the unconditional
    model of the same autoencoder too.
    """
    forward = getattr(denoiser, "forward", None)
    parameters = inspect.signature(forward).parameters if forward is not None else {}
    if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return data
    kept = {name: v for name, v in data.conditioning.items() if name.partition(".")[0] in parameters}
    return data if len(kept) == len(data.conditioning) else LatentData(data.latents, kept)
