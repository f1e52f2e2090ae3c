"""Records and marked miniatures that the tests of verdicts share."""

import copy
from collections.abc import Callable

import pytest
import torch
from _disguises import conditional, latents
from _tiny import tiny_unet
from diffusers import DDPMScheduler, UNet2DConditionModel

from aiao_diffusers import EmbedConfig, EmbedReport, LatentData, WatermarkKey, WatermarkRecord, embed
from aiao_diffusers.denoiser.sites import trace_on


KEY = WatermarkKey(bytes(range(32)), "Demo")
Marked = tuple[UNet2DConditionModel, UNet2DConditionModel, EmbedReport]


@pytest.fixture(scope="session")
def record() -> WatermarkRecord:
    """Of a mark that no model carries, fit for `tiny_unet()`."""
    generator = torch.Generator().manual_seed(0)
    bank = LatentData(
        torch.randn(3, 4, 8, 8, generator=generator),
        {"encoder_hidden_states": torch.randn(3, 5, 12, generator=generator)},
    )
    layout = tuple(trace_on(tiny_unet(), bank))
    fields = {"kappa": 1.0, "response": 1.0, "scheduler": {"num_train_timesteps": 1000}, "bank": bank}
    return WatermarkRecord("Demo", KEY.commitment, "UNet2DConditionModel", len(layout), 2, 3, **fields, layout=layout)


@pytest.fixture(scope="session")
def marked(once: Callable[[str, Callable[[], Marked]], Marked]) -> Marked:
    """A miniature teacher, the same marked, and what embedding returned."""

    def make() -> Marked:
        unet = conditional(layers_per_block=2)
        teacher = copy.deepcopy(unet)
        fields = {"steps": 80, "lr": 2e-3, "batch_size": 4, "in_sites": 2, "out_sites": 4, "bank_size": 8}
        config = EmbedConfig(**fields, response=1.0, eps=1.0, dec=2.0, corr=2.0, anchor=0.0, max_price=None)
        return teacher, unet, embed(unet, KEY, latents(), config, scheduler=DDPMScheduler())

    return once("disguises", make)
