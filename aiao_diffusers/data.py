"""Kept for code written for 0.1: see `denoiser.inputs`, `denoiser.encode` and `denoiser.latents`."""

from .denoiser.encode import (
    from_folder,
    from_images,
    from_prompts,
    image_rows,
    prepare,
    side_of,
    vocabulary_prompts,
)
from .denoiser.inputs import LatentData, fitting
from .denoiser.latents import autoencoder


__all__ = [
    "LatentData",
    "autoencoder",
    "fitting",
    "from_folder",
    "from_images",
    "from_prompts",
    "image_rows",
    "prepare",
    "side_of",
    "vocabulary_prompts",
]
