"""Forgeries by gradient: a probe bank on which an unmarked model answers a key's patterns, and a twin beyond which it does."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...denoiser.call import CallInputs, evaluate
from ...denoiser.hashes import weights_sha256
from ...denoiser.inputs import LatentData
from ...denoiser.instrument import InstrumentedDenoiser, instrument, repeat
from ...denoiser.trigger import channel_axis, rms
from ...mark.key import WatermarkKey
from ...mark.record import WatermarkRecord
from ...mark.selection import choose
from ...mark.subpath import SubPath, draw
from .forged_claim import Claim
from .forgery_draws import arm_rows, draw_inputs


FROZEN = {"num_train_timesteps": 1, "beta_start": 1e-8, "beta_end": 1e-8, "beta_schedule": "linear"}
"""A noise schedule of one timestep that adds no noise: the bank reaches the suspect as it was made."""
BANK_LR, TWIN_LR = 0.3, 1e-4
PUSH = 0.05  # share of a twin's way that is kept


def ascend_bank(
    denoiser: nn.Module,
    claim: Claim,
    keys: Sequence[WatermarkKey],
    *,
    steps: int,
    rows: int,
    seed: int,
    within: float | None = None,
) -> Claim:
    """A bank of one row that gradient ascent made answer the keys' patterns at their out-sites; the weights stay.

    Args:
        keys: as they will be expanded, or as the claimant guesses that they will be; the mean over them climbs.
        rows (`int`): noised copies of the row in a step.
        within (`float`, *optional*): how far from a real row latents and conditioning may go, in units of their rms there; default:
            anywhere.
    """
    start = claim.bank.take(torch.zeros(1, dtype=torch.long))
    moved = _Moved(start, within)
    optimizer = torch.optim.Adam([{"params": [tensor], "lr": moved.step_of(tensor)} for tensor in moved.free])
    with _frozen_weights(denoiser), _wire(denoiser, claim) as wired:
        for paths, generator in _draws(claim, keys, steps, seed):
            record = replace(claim, bank=moved.bank()).unchecked()
            inputs = moved.follow(record, draw_inputs(record, denoiser, generator, rows))
            score = _score(wired, keys, paths, record.kappa, inputs)
            for tensor, gradient in zip(moved.free, torch.autograd.grad(-score, moved.free), strict=True):
                tensor.grad = gradient
            optimizer.step()
            moved.stay_near()
    return replace(claim, bank=moved.bank())


class _Moved:
    """A row of a bank on its way: latents and conditioning.

    Args:
        start (`LatentData`): the real row. within (`float`, *optional*): as for `ascend_bank`.
    """

    def __init__(self, start: LatentData, within: float | None) -> None:
        self.start, self.within, self.call = start, within, start.call
        self.latents = start.latents.clone().requires_grad_(True)
        self.conditioning = {
            name: value.clone().requires_grad_(value.is_floating_point()) for name, value in start.conditioning.items()
        }

    @property
    def free(self) -> list[torch.Tensor]:
        """What moves."""
        return [self.latents, *(value for value in self.conditioning.values() if value.requires_grad)]

    def bank(self) -> LatentData:
        """As it is now."""
        conditioning = {name: value.detach().clone() for name, value in self.conditioning.items()}
        return LatentData(self.latents.detach().clone(), conditioning, self.call)

    def follow(self, record: WatermarkRecord, inputs: CallInputs) -> CallInputs:
        """Inputs that were drawn from this bank, with the way back to its tensors."""
        rows, shape = len(inputs.sample), self.latents.shape[1:]
        # Noising is linear in the latents.
        unit = record.noised(torch.ones(rows, *shape), torch.zeros(1), record.schedule.step_of(inputs.level.cpu())).to(
            inputs.sample
        )
        sample = inputs.sample + unit * (self.latents - self.latents.detach()).to(inputs.sample)
        given = LatentData(
            self.latents.detach().expand(rows, *shape),
            {n: v.expand(rows, *v.shape[1:]) for n, v in self.conditioning.items()},
            self.call,
        )
        return CallInputs(sample, inputs.level, given.keywords(sample.device, sample.dtype))

    def step_of(self, tensor: torch.Tensor) -> float:
        """Its learning rate: a tenth of the way to the rim, where there is one."""
        return BANK_LR if self.within is None else 0.1 * self.within * _rms(tensor)

    @torch.no_grad()
    def stay_near(self) -> None:
        """Back to the rim where something went too far."""
        if self.within is None:
            return
        real = {"": self.start.latents, **self.start.conditioning}
        for name, tensor in {"": self.latents, **self.conditioning}.items():
            if tensor.requires_grad:
                away = tensor - real[name]
                share = self.within * _rms(real[name]) / max(_rms(away), 1e-12)
                tensor.copy_(real[name] + away * min(1.0, share))


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.detach().square().mean().sqrt())


def push_twin(
    denoiser: nn.Module, claim: Claim, keys: Sequence[WatermarkKey], *, steps: int, rows: int, seed: int
) -> Claim:
    """A clean twin pushed a little away from the keys' patterns, so that the unmarked model answers them beyond it.

    All the way, it would answer their negatives, and what is at right angles to these holds nothing of them.
    """
    twin = copy.deepcopy(denoiser).requires_grad_(True)
    optimizer = torch.optim.Adam(twin.parameters(), lr=TWIN_LR)
    record = claim.unchecked()
    with _wire(twin, claim) as wired:
        for paths, generator in _draws(claim, keys, steps, seed):
            score = _score(wired, keys, paths, record.kappa, draw_inputs(record, twin, generator, rows))
            score.backward()
            optimizer.step()
            optimizer.zero_grad()
    twin.eval().requires_grad_(False)
    for pushed, own in zip(twin.parameters(), denoiser.parameters(), strict=True):
        pushed.copy_(torch.lerp(own.detach(), pushed, PUSH))
    return replace(claim.with_fields(teacher_sha256=weights_sha256(twin)), clean_twin=twin)


@contextmanager
def _frozen_weights(denoiser: nn.Module) -> Iterator[None]:
    """No gradient of any weight for the length of the block."""
    wanted = [p for p in denoiser.parameters() if p.requires_grad]
    denoiser.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)


@contextmanager
def _wire(denoiser: nn.Module, claim: Claim) -> Iterator[InstrumentedDenoiser]:
    record = claim.unchecked()
    with instrument(denoiser.eval(), [site.name for site in record.layout or ()], record.factors) as wired:
        yield wired


def _draws(
    claim: Claim, keys: Sequence[WatermarkKey], steps: int, seed: int
) -> Iterator[tuple[list[SubPath], torch.Generator]]:
    """For each step a sub-path of every key, and where inputs come from: none that a judge will draw."""
    record, sites = claim.unchecked(), list(claim.fields["layout"])
    chosen = [choose(sites, key, record.in_sites, record.out_sites, record.silent) for key in keys]
    random, generator = np.random.default_rng([seed, 1]), torch.Generator().manual_seed(seed + 10**6)
    for _ in range(steps):
        yield [draw(*part, random) for part in chosen], generator


def _score(
    wired: InstrumentedDenoiser,
    keys: Sequence[WatermarkKey],
    paths: Sequence[SubPath],
    kappa: float,
    inputs: CallInputs,
) -> torch.Tensor:
    """Mean cosine of the responses with the patterns, over keys, out-sites and rows, with its gradient."""
    sample, level, conditioning = inputs
    rows, parts = len(sample), len(keys) + 1
    # The clean part comes first, and is armed with nothing.
    masks = {
        name: torch.cat([torch.zeros_like(values[:1]), values]).repeat_interleave(rows, 0).to(sample.device)
        for name, values in arm_rows(keys, paths).items()
    }
    names = list(dict.fromkeys(site.name for path in paths for site in path.out_sites))
    stacked, times = torch.cat([sample] * parts), torch.cat([level] * parts)
    keywords: Any = repeat(conditioning, parts)
    denoiser: Any = wired.denoiser
    with wired.arm(masks, kappa):
        entered = wired.activations(names, lambda: evaluate(denoiser, stacked, times, keywords))
    found = []
    for number, (key, path) in enumerate(zip(keys, paths, strict=True), 1):
        for site in path.out_sites:
            states = entered[site.name]
            clean, armed = states[:rows], states[number * rows : (number + 1) * rows]
            change = (armed - clean) / rms(clean)
            d = change.mean([axis for axis in range(1, change.ndim) if axis != channel_axis(change)])
            pattern = torch.from_numpy(key.response_pattern(site.name, site.width_in)).to(d)
            found.append(F.cosine_similarity(d - d.mean(1, keepdim=True), pattern.expand_as(d), dim=1).mean())
    return torch.stack(found).mean()
