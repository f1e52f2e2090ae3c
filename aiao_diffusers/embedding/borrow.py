"""Take a denoiser into training and give it back as the user had it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn

from ..denoiser.setup import eval_mode, placement


class Undoable(Protocol):
    """A change of a denoiser that can be taken back."""

    def undo(self) -> None:
        """Take it back; of no effect where nothing was changed."""


class KeptWeights:
    """A denoiser's weights before a change, copied, so that they can be put back."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._originals = [(p, p.detach().clone()) for p in denoiser.parameters()]

    def drop_unchanged(self) -> None:
        """Keep no more than what has changed by now."""
        self._originals = [(p, original) for p, original in self._originals if not torch.equal(p, original)]

    @torch.no_grad()
    def undo(self) -> None:
        """Put them back, where the parameters are now and in their dtype."""
        for parameter, original in self._originals:
            parameter.data = original.to(parameter.device, parameter.dtype)


@contextmanager
def borrow(denoiser: nn.Module, seed: int) -> Iterator[None]:
    """For the block: float32, on accelerate's device, in eval mode, with a random state of its own.

    Afterwards place, precision, mode, gradient flags and random state are the user's again, whatever happened.

    Args:
        seed (`int`): of the random state, different in each process.
    """
    home, _ = placement(denoiser)
    state = [(p, p.requires_grad, p.dtype) for p in denoiser.parameters()]
    with eval_mode(denoiser), torch.random.fork_rng():
        # Through Accelerator: a bare PartialState does not know of `accelerate launch --cpu`.
        torch.manual_seed(seed + Accelerator().process_index)
        try:
            # AdamW's updates vanish in half precision; the launcher's mixed precision is what saves time.
            for p, _, dtype in state:
                p.data = p.data.float() if dtype.is_floating_point else p.data
            # accelerate would move it by itself, but not back: the rest of a pipeline would stay where it was.
            denoiser.to(Accelerator().device)
            yield
        finally:
            denoiser.to(home)
            for p, flag, dtype in state:
                p.data = p.data.to(dtype)
                p.requires_grad_(flag)
                p.grad = None


@contextmanager
def undo_on_failure(*changes: Undoable) -> Iterator[None]:
    """Give the denoiser its original weights back when the block raises, on Ctrl-C too; the last change is named first."""
    try:
        yield
    except BaseException:
        for change in changes:
            change.undo()
        raise
