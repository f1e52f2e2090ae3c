"""What a denoiser is trained and probed on: rows of clean latents with their conditioning."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import DataError
from ..files.atomic import write_whole
from .call import UNET_CALL, DenoiserCall, Keywords


ROWS, SHARED = "cond.", "shared."
CALL = "call"
"""Name of the metadata that says how the denoiser is called, in files of latents and in a record's probe bank."""


@dataclass(frozen=True)
class LatentData:
    """Clean latents and the conditioning that belongs to each.

    Args:
        latents (`torch.Tensor`): scaled as the denoiser sees them, `(N, C, H, W)`, float32.
        conditioning (`dict[str, torch.Tensor]`): the denoiser's keyword tensors, `(N, ...)` each; a dotted name such as
            `added_cond_kwargs.text_embeds` goes into a nested dictionary. Empty for unconditional denoisers.
        call (`DenoiserCall`): how the denoiser is called with them, default a U-Net's way.
    Raises:
        DataError: no latents, lengths differ, or a value is not finite.
    """

    latents: torch.Tensor
    conditioning: Mapping[str, torch.Tensor]
    call: DenoiserCall = UNET_CALL

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
        return LatentData(
            self.latents[index], {name: value[index] for name, value in self.conditioning.items()}, self.call
        )

    def keywords(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Keywords:
        """Conditioning for `evaluate`, floating point in `dtype`."""
        return Keywords(self.conditioning, self.call).map(
            lambda value: value.to(device, dtype) if value.is_floating_point() else value.to(device)
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by the names that files give them."""
        rows = {f"{ROWS}{name}": value for name, value in self.conditioning.items()}
        shared = {f"{SHARED}{name}": value for name, value in self.call.shared.items()}
        return {"latents": self.latents, **rows, **shared}

    def metadata(self) -> dict[str, str] | None:
        """What files say beside the tensors; None for a U-Net's call."""
        return None if self.call == UNET_CALL else {CALL: self.call.to_json()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None) -> "LatentData":
        """What `tensors` and `metadata` gave.

        Raises:
            DataError: no tensor of latents, or as the class and as `DenoiserCall.from_json`.
        """
        if "latents" not in tensors:
            raise DataError(f"there is no tensor 'latents', only {sorted(tensors)[:5]}: was it made by LatentData?")
        shared = {name.removeprefix(SHARED): value for name, value in tensors.items() if name.startswith(SHARED)}
        rows = {
            name.removeprefix(ROWS): value
            for name, value in tensors.items()
            if name != "latents" and not name.startswith(SHARED)
        }
        text = (metadata or {}).get(CALL)
        call = UNET_CALL if text is None else DenoiserCall.from_json(text, shared)
        return cls(tensors["latents"], rows, call)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Cache as safetensors, floating point in `dtype`; written whole or not at all."""
        stored = {}
        for name, value in self.tensors().items():
            # Tables of positions and the like lose their meaning in half precision.
            rounded = value.is_floating_point() and not name.startswith(SHARED)
            stored[name] = (value.to(dtype) if rounded else value).contiguous()
        with write_whole(Path(path)) as partial:
            save_file(stored, partial, self.metadata())

    @classmethod
    def load(cls, path: str | Path) -> "LatentData":
        """Read what `save` wrote; floating point comes back as float32."""
        try:
            with safe_open(str(path), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                metadata = file.metadata()
        except Exception as error:  # safetensors raises its own class, a plain Exception
            raise DataError(f"'{path}' cannot be read as cached latents ({error}).") from error
        tensors = {n: v.float() if v.is_floating_point() else v for n, v in tensors.items()}
        try:
            return cls.from_tensors(tensors, metadata)
        except DataError as error:
            raise DataError(f"'{path}': {error}") from error


def fitting(data: LatentData, denoiser: Any) -> LatentData:
    """The conditioning that `denoiser` takes, by its forward's signature: latents cached with captions serve the unconditional
    model of the same autoencoder too.

    Raises:
        DataError: the data bring a call of their own, with an argument that `denoiser` does not take.
    """
    if data.call != UNET_CALL:
        if isinstance(denoiser, nn.Module):
            data.call.check_fits(denoiser)
        return data
    forward = getattr(denoiser, "forward", None)
    parameters = inspect.signature(forward).parameters if forward is not None else {}
    if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return data
    kept = {name: v for name, v in data.conditioning.items() if name.partition(".")[0] in parameters}
    return data if len(kept) == len(data.conditioning) else LatentData(data.latents, kept)
