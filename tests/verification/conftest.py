"""Records and marked miniatures that the tests of verdicts share."""

import pytest
import torch
from _tiny import tiny_unet
from diffusers import UNet2DConditionModel

from aiao_diffusers import EmbedReport, LatentData, WatermarkKey, WatermarkRecord
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


@pytest.fixture
def marked(disguisable: Marked) -> Marked:
    """A miniature teacher, the same marked, and what embedding returned."""
    return disguisable
