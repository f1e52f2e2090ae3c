"""Attacks on a marked denoiser, each a function that changes it. Every module here registers its own by `@attack`."""

import importlib
import pkgutil


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
