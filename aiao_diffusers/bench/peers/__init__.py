"""Marking methods that the benchmark compares, ours among them; each registers itself by `@method`.

A method is a frozen dataclass of hyper-parameters with two functions:

    embed(denoiser, key, context, folder)                        change the denoiser in place; leave public files in folder
    verify(denoiser, key, context, folder, *, alpha, trials, seed) -> Outcome     by the method's own rule

Optional: `own_key(key, context)`, the key of a model that is marked already; `sources`, files it reads beside the context.
"""

import importlib
import pkgutil

from .outcome import Outcome


__all__ = ["Outcome"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
