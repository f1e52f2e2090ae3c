"""Families of images whose denoiser is a transformer, the second half."""

from .family import Family


FAMILIES: tuple[Family, ...] = ()
