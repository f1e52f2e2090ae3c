"""Marking methods that the benchmark compares, ours among them; each registers itself by `@method`.

A method is a frozen dataclass of hyper-parameters with two functions:

    embed(denoiser, key, scene, folder)                        change the denoiser in place; leave public files in folder
    verify(denoiser, key, scene, folder, *, alpha, trials, seed) -> Outcome     by the method's own rule
"""

import importlib
import pkgutil

from .outcome import Outcome


__all__ = ["Outcome"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
