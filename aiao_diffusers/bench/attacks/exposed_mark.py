"""What attackers work on who know the method, the code and the published record, but not the key.

The record says how many sites a key uses, the code from which part of the denoiser; so they suspect every candidate there,
which on small models is nearly the exact set. All minimise the ordinary noise loss beside their own term, for a model that
draws nothing is worth nothing to them: `invariance`, `inversion`, `probing`; `targeted` and `overwrite` are kin.

Source: our choice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...denoiser.call import Keywords, prediction
from ...denoiser.instrument import InstrumentedDenoiser, instrument, repeat
from ...denoiser.schedule import NoiseSchedule, noise_schedule
from ...denoiser.sites import Site, trace_on
from ...denoiser.trigger import channel_axis
from ...embedding.embed import EmbedConfig
from ...embedding.losses import balanced_rows, random_sets
from ...embedding.site_gain import site_gain
from ...mark.selection import IN_SPAN, OUT_SPAN, span
from ..context import AttackContext
from ..trainer import train


Masks = dict[str, torch.Tensor]
Moved = dict[str, torch.Tensor]
MASK_AMPLITUDES = (0.5, 2.0)


@dataclass(frozen=True)
class Batch:
    """Noised latents `(B, ...)` with what the denoiser should predict of them, the scheduler's times `(B,)` and conditioning."""

    noised: torch.Tensor
    wanted: torch.Tensor
    t: torch.Tensor
    keywords: Keywords


@dataclass(frozen=True)
class ExposedMark:
    """A denoiser wrapped at every site that a key may use, and the attacker's data."""

    wired: InstrumentedDenoiser
    ins: list[Site]
    outs: list[Site]
    context: AttackContext

    @cached_property
    def noising(self) -> NoiseSchedule:
        """The noise schedule."""
        return noise_schedule(dict(self.context.scheduler.config))

    @property
    def device(self) -> torch.device:
        """Of the denoiser."""
        return next(self.wired.denoiser.parameters()).device

    def draw(self, size: int) -> Batch:
        """A batch of the attacker's data, by torch's global random state."""
        rows = self.context.data.take(torch.randint(len(self.context.data), (size,)))
        x, noise = rows.latents.to(self.device), torch.randn(rows.latents.shape).to(self.device)
        t = torch.randint(self.noising.steps, (size,)).to(self.device)
        wanted = self.noising.target(x, noise, t)
        return Batch(self.noising.add_noise(x, noise, t), wanted, self.noising.level(t), rows.keywords(self.device))

    def masks(self, size: int) -> Masks:
        """Random balanced masks at a random set of sites for each of `size` samples, `(size, C)` by in-site."""
        armed = random_sets(len(self.ins), size)
        return {
            site.name: (balanced_rows(size, site.width_out) * armed[:, i, None]).to(self.device)
            for i, site in enumerate(self.ins)
        }

    def forward(self, batch: Batch, masks: Masks, amplitude: torch.Tensor) -> tuple[torch.Tensor, Moved]:
        """Clean and triggered in one pass.

        Returns:
            the clean prediction, and for each out-site how far the trigger moved what enters it, in units of the
            batch's rms, shaped as the states. The clean states are constants here: they are what should come out.
        """
        size, names = len(batch.t), [site.name for site in self.outs]
        both = {name: torch.cat([torch.zeros_like(rows), rows]) for name, rows in masks.items()}
        amplitudes = torch.cat([torch.zeros_like(amplitude), amplitude])
        denoiser: Any = self.wired.denoiser
        with self.wired.arm(both, amplitudes), self.wired.capture(names) as collect:
            stacked, t = torch.cat([batch.noised, batch.noised]), torch.cat([batch.t, batch.t])
            predicted = prediction(denoiser, stacked, t, repeat(batch.keywords, 2))[:size]
            entered = collect()
        moved = {}
        for name, states in entered.items():
            clean = states[:size].detach()
            moved[name] = (states[size:] - clean) / clean.square().mean().sqrt()
        return predicted, moved


@contextmanager
def expose(denoiser: nn.Module, context: AttackContext) -> Iterator[ExposedMark]:
    """Wrap every candidate site for the length of the block, as loud as the owner's procedure would make them."""
    sites = trace_on(denoiser, context.data)
    ins, outs = span(sites, IN_SPAN), span(sites, OUT_SPAN)
    factors = site_gain(
        denoiser, sites, context.data, dict(context.scheduler.config), most=EmbedConfig.loudest, seed=context.seed
    )
    with instrument(denoiser, [site.name for site in (*ins, *outs)], factors) as wired:
        yield ExposedMark(wired, ins, outs, context)


def harden(
    target: ExposedMark,
    masks: Callable[[int], Masks],
    term: Callable[[Moved], torch.Tensor],
    *,
    steps: int,
    lr: float,
    batch_size: int,
    weight: float,
    amplitude: float = MASK_AMPLITUDES[1],
) -> None:
    """Train the noise loss plus `weight` times `term` of what fresh `masks` move, at amplitudes uniform in .5 to `amplitude`."""

    def loss() -> torch.Tensor:
        batch = target.draw(batch_size)
        size = torch.empty(batch_size).uniform_(MASK_AMPLITUDES[0], amplitude).to(target.device)
        predicted, moved = target.forward(batch, masks(batch_size), size)
        return F.mse_loss(predicted, batch.wanted) + weight * term(moved)

    train(target.wired.denoiser, loss, steps=steps, lr=lr, seed=target.context.seed)


def everything(moved: Moved) -> torch.Tensor:
    """Mean square of all that moved."""
    return torch.stack([change.square().mean() for change in moved.values()]).mean()


def by_channel(moved: torch.Tensor) -> torch.Tensor:
    """Mean over positions: `(B, C)`, what a reader of the mark sees."""
    return moved.mean([axis for axis in range(1, moved.ndim) if axis != channel_axis(moved)])
