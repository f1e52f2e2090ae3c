"""Kept for code written for 0.1: see `denoiser.inputs` and `denoiser.encode`."""

from .denoiser.encode import (
    autoencoder,
    from_folder,
    from_images,
    from_prompts,
    image_rows,
    prepare,
    side_of,
    vocabulary_prompts,
)
from .denoiser.inputs import LatentData, fitting


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
