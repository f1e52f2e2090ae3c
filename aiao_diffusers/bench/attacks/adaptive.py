"""Attackers who know the method, the code and the published record, but not the key.

The record says how many sites a key uses, the code from which part of the denoiser; so they suspect every candidate there,
which on small models is nearly the exact set. All minimise the ordinary noise loss beside their own term, for a model that
draws nothing is worth nothing to them.

Source: our choice.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...denoiser.finetune import finetune
from ...denoiser.instrument import InstrumentedDenoiser, instrument, repeat
from ...denoiser.schedule import noise_schedule
from ...denoiser.schedule import target as wanted_of
from ...denoiser.sites import Site, trace_on
from ...denoiser.trigger import channel_axis
from ...embedding.embed import EmbedConfig, embed
from ...embedding.layer_profile import profile
from ...embedding.losses import balanced_rows, log_uniform, random_sets
from ...embedding.site_gain import site_gain
from ...mark.key import WatermarkKey
from ...mark.selection import IN_SPAN, OUT_SPAN, span
from ..context import AttackContext
from ..registry import attack
from ..trainer import train


Masks = dict[str, torch.Tensor]
Moved = dict[str, torch.Tensor]
MASK_AMPLITUDES = (0.5, 2.0)


@dataclass(frozen=True)
class Batch:
    """Noised latents `(B, ...)` with what the denoiser should predict of them, timesteps `(B,)` and conditioning."""

    noised: torch.Tensor
    wanted: torch.Tensor
    t: torch.Tensor
    keywords: Mapping[str, Any]


@dataclass(frozen=True)
class ExposedMark:
    """A denoiser wrapped at every site that a key may use, and the attacker's data."""

    wired: InstrumentedDenoiser
    ins: list[Site]
    outs: list[Site]
    context: AttackContext

    @cached_property
    def noising(self) -> Any:
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
        t = torch.randint(int(self.noising.config["num_train_timesteps"]), (size,)).to(self.device)
        wanted = wanted_of(self.noising, x, noise, t)
        return Batch(self.noising.add_noise(x, noise, t), wanted, t, rows.keywords(self.device))

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
            predicted = denoiser(stacked, timestep=t, **repeat(batch.keywords, 2)).sample[:size]
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


@attack("invariance", strength="steps")
def invariance(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 200,
    lr: float = 3e-4,
    batch_size: int = 8,
    amplitude: float = MASK_AMPLITUDES[1],
    weight: float = 1.0,
) -> nn.Module:
    """Learn to ignore random masks: whatever a key arms, nothing shall answer."""
    with expose(denoiser, context) as target:
        harden(
            target,
            target.masks,
            everything,
            steps=steps,
            lr=lr,
            batch_size=batch_size,
            weight=weight,
            amplitude=amplitude,
        )
    return denoiser


@attack("overwrite", strength="steps")
def overwrite(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 200,
    lr: float = 5e-4,
    batch_size: int = 8,
    count: int = 1,
    in_sites: int = 5,
    out_sites: int = 7,
    response: float = 1.0,
    pairs: bool = False,
) -> nn.Module:
    """Embed `count` keys of the attacker's own, one after the other, by the owner's procedure, but louder, at any price, and without
    the pull towards the weights that are to be overwritten. `pairs`: with a mask for each pair of sites."""
    for number in range(count):
        key = attacker_key(context.seed, number)
        sites: dict[str, Any] = {"in_sites": in_sites, "out_sites": out_sites}
        loud: dict[str, Any] = {"response": response, "anchor": 0.0, "max_price": None, "pairs": pairs}
        config = EmbedConfig(steps=steps, lr=lr, batch_size=batch_size, seed=context.seed, **sites, **loud)
        embed(denoiser, key, context.data, config, scheduler=context.scheduler)
    return denoiser.eval().requires_grad_(False)


def attacker_key(seed: int, number: int) -> WatermarkKey:
    """A key that no owner has."""
    return WatermarkKey(hashlib.sha256(f"attacker/{seed}/{number}".encode()).digest(), "Attacker")


@attack("probing", strength="steps")
def probing(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 200,
    lr: float = 3e-4,
    batch_size: int = 8,
    probes: int = 256,
    directions: int = 16,
    weight: float = 1.0,
) -> nn.Module:
    """Learn from `probes` random masks in which `directions` each site answers most; then train answers there away."""
    with expose(denoiser, context) as target:
        bases = principal(target, probes, directions, batch_size)

        def term(moved: Moved) -> torch.Tensor:
            along = [(by_channel(moved[name]) @ basis).square().sum(1).mean() for name, basis in bases.items()]
            return torch.stack(along).mean()

        harden(target, target.masks, term, steps=steps, lr=lr, batch_size=batch_size, weight=weight)
    return denoiser


@torch.no_grad()
def principal(target: ExposedMark, probes: int, directions: int, batch_size: int) -> Masks:
    """By out-site an orthonormal basis `(C, directions)` of its largest answers to random masks."""
    answers: dict[str, list[torch.Tensor]] = {site.name: [] for site in target.outs}
    with torch.random.fork_rng():
        torch.manual_seed(target.context.seed)
        for _ in range(-(-probes // batch_size)):
            amplitude = torch.full((batch_size,), 1.0, device=target.device)
            _, moved = target.forward(target.draw(batch_size), target.masks(batch_size), amplitude)
            for name, change in moved.items():
                answers[name].append(by_channel(change))
    # Not centred: a response pattern is an offset that all masks of the key share.
    return {name: torch.linalg.svd(torch.cat(rows)).Vh[:directions].T for name, rows in answers.items()}


@attack("inversion", strength="steps")
def inversion(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 200,
    lr: float = 3e-4,
    batch_size: int = 8,
    starts: int = 16,
    ascent: int = 40,
    weight: float = 1.0,
) -> nn.Module:
    """Ascend to the masks that move the out-sites most, from `starts` random ones; then train their effect away."""
    with expose(denoiser, context) as target:
        found = invert(target, starts=starts, steps=ascent)

        def half_and_half(size: int) -> Masks:
            rows, fresh = torch.randint(starts, (size,)), torch.rand(size, 1).to(target.device) < 0.5
            return {name: torch.where(fresh, mask, found[name][rows]) for name, mask in target.masks(size).items()}

        harden(target, half_and_half, everything, steps=steps, lr=lr, batch_size=batch_size, weight=weight)
    return denoiser


def invert(target: ExposedMark, *, starts: int, steps: int, lr: float = 0.1) -> Masks:
    """Trigger inversion: Adam on real-valued masks of rms 1, on the mean square of what `by_channel` shows.

    Half of the starts arm every candidate in-site together, the others one each in turn.

    Returns:
        `(starts, C)` by in-site; zero where a start does not arm it.
    """
    denoiser = target.wired.denoiser.eval().requires_grad_(False)
    joint = torch.arange(starts) < starts // 2
    with torch.random.fork_rng():
        torch.manual_seed(target.context.seed)
        raw = {site.name: torch.randn(starts, site.width_out, device=target.device) for site in target.ins}
        armed = {
            site.name: (joint | (torch.arange(starts) % len(target.ins) == i))[:, None].float().to(target.device)
            for i, site in enumerate(target.ins)
        }

        def masks() -> Masks:
            return {n: armed[n] * v / v.square().mean(1, keepdim=True).sqrt() for n, v in raw.items()}

        optimizer = torch.optim.Adam([v.requires_grad_() for v in raw.values()], lr=lr)
        with torch.enable_grad():
            for _ in range(steps):
                amplitude = log_uniform(starts, 0.8, 2.5, target.device)
                _, moved = target.forward(target.draw(starts), masks(), amplitude)
                # A sum: each start climbs by itself.
                gain = torch.stack([by_channel(change).square().mean(1).sum() for change in moved.values()]).mean()
                (-gain).backward()
                optimizer.step()
                optimizer.zero_grad()
    denoiser.zero_grad()
    return {name: value.detach() for name, value in masks().items()}


@attack("targeted", strength="steps")
def targeted(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 200,
    lr: float = 1e-3,
    batch_size: int = 16,
    guess: int = 50,
    share: float = 0.3,
) -> nn.Module:
    """Retrain, at a high rate, the `share` of layers that an invariance run of `guess` steps moves most."""
    moved = invariance(copy.deepcopy(denoiser), context, steps=guess)
    busy = profile(denoiser, moved).busiest(denoiser, share)
    denoiser.requires_grad_(False)
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_(name in busy)
    finetune(denoiser, context.data, context.scheduler, steps=steps, lr=lr, batch_size=batch_size, seed=context.seed)
    return denoiser.eval().requires_grad_(False)
