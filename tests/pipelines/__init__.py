"""Miniature pipelines of many families, random and made in code: `FAMILIES[name].build()`.

Each is the stock pipeline class with the stock classes of its parts, so that what a test learns of it holds for the
published models of the family, their size and their weights aside.
"""

from . import images_a, images_b, images_c, images_d, unets, videos, videos_b
from .family import Family


MODULES = (unets, images_a, images_b, images_c, images_d, videos, videos_b)
ALL = [family for module in MODULES for family in module.FAMILIES]
FAMILIES: dict[str, Family] = {family.name: family for family in ALL}
