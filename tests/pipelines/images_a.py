"""Families of images whose denoiser is a transformer, the first half."""

from .family import Family


FAMILIES: tuple[Family, ...] = ()
