"""Families of videos."""

from .family import Family


FAMILIES: tuple[Family, ...] = ()
