"""Families whose denoiser is a U-Net."""

from .family import Family


FAMILIES: tuple[Family, ...] = ()
