"""An unmarked miniature and what a dishonest claimant may say of it."""

import copy
from typing import Any

import pytest
import torch
from _tiny import learner
from diffusers import DDPMPipeline

from aiao_diffusers import WatermarkKey, WatermarkRecord
from aiao_diffusers.bench.audits.forged_claim import honest_claim
from aiao_diffusers.bench.audits.forgery import Effort, Scene
from aiao_diffusers.denoiser.hashes import weights_sha256
from aiao_diffusers.denoiser.probes import Probes
from aiao_diffusers.denoiser.sites import trace_on


CLAIMANT = WatermarkKey(bytes(range(1, 33)), "Claimant")


@pytest.fixture
def scene() -> Any:
    """`learner` with sharp attention, so that what enters it matters; another unmarked model near it; a judge's probes."""
    unet, data, scheduler = learner()
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "to_q.weight" in name or "to_k.weight" in name:
                weight.mul_(4)
            elif "conv" in name and name.endswith("weight"):
                weight.mul_(1.5)
    unet.requires_grad_(False)
    later, random = copy.deepcopy(unet), torch.Generator().manual_seed(1)
    for weight in later.parameters():
        weight.add_(0.02 * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=random))
    layout = tuple(trace_on(unet, data))
    fields = {"scheduler": dict(scheduler.config), "bank": data, "layout": layout, "loudness": (1.0,) * len(layout)}
    record = WatermarkRecord("Demo", "", "UNet2DModel", len(layout), 1, 3, 1.0, 0.3, **fields)
    probes = Probes(data.take(torch.arange(8, 12)), dict(scheduler.config), "the same family", 5, None)
    honest = honest_claim(CLAIMANT, record, weights_sha256(unet))
    return Scene(DDPMPipeline(unet, scheduler), honest, later, Effort(steps=80, keys=40, guesses=2), probes)
