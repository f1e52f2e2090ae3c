"""Build a model from a stranger's config without memory, and measure what building it in earnest would take.

A config sizes two things. Weights are on the meta device until a file fills them, so that whatever no file backs costs nothing.
Tables of positions and frequencies are computed while a model is built, and real in the model that is filled: a grid of 10^6
by 10^6 is one small number in a config. Its fields tell tables from widths only by names that differ from class to class, and
two harmless fields multiply; so the build itself is measured, with every tensor on the meta device, also those that a
class puts on the CPU by name.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import UnsafeFileError


Model = TypeVar("Model", bound=nn.Module)
MAX_OPERATIONS = 2**16
"""Steps of one build, a few seconds. Of diffusers 0.42 the largest, Kandinsky 6, takes 9,000: two a weight."""
MAX_TABLE_BYTES = 2**35
"""Of all tables with every step towards them, of which a few are in memory at once. Stable Diffusion 3.5 Medium takes 8 GB, the
most of any published denoiser. Our choice."""


class _Meter(TorchDispatchMode):
    """Counts the steps of a build and the bytes that they make, without making them; of one thread alone."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        self.operations += 1
        if self.operations > MAX_OPERATIONS:
            raise UnsafeFileError(f"config.json: building its model takes over {MAX_OPERATIONS} steps: it was altered")
        made = func(*args, **kwargs)
        if not func._schema.is_mutable:  # filling a weight in place makes nothing
            found = (leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in found)
        return made


def build_blank(build: Callable[[], Model]) -> Model:
    """What `build` makes, on the meta device; other threads are not touched.

    Args:
        build: builds a model by a config.
    Raises:
        UnsafeFileError: more than `MAX_OPERATIONS` steps, or more than `MAX_TABLE_BYTES` beside the weights.
    """
    with torch.device("meta"), _Meter() as meter:
        model = build()
    tables = meter.bytes - sum(p.numel() * p.element_size() for p in model.parameters())
    if tables > MAX_TABLE_BYTES:
        raise UnsafeFileError(
            f"config.json: its model computes tables of {tables / 2**30:.3g} GiB, at most {MAX_TABLE_BYTES >> 30}: it was altered"
        )
    return model
