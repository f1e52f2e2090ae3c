"""The blank denoiser that a record names, and strangers' architectures that no file bounds."""

import dataclasses

import pytest
from _carried import text_unet
from _evidence import bound_record

from aiao_diffusers.errors import RecordError
from aiao_diffusers.lineage.blank import blank_of
from aiao_diffusers.lineage.sites import plan_carrier
from aiao_diffusers.mark.carried import carried
from aiao_diffusers.mark.record import WatermarkRecord


def record(denoiser: str = "UNet2DConditionModel", **changes: object) -> WatermarkRecord:
    field = carried(0.25, text_unet())
    named = {"denoiser": denoiser, "lineage": {**field, "architecture": {**field["architecture"], **changes}}}
    return dataclasses.replace(bound_record(), as_committed=False, **named)


def test_the_marked_architecture_without_memory():
    blank = blank_of(record())
    assert {name: tuple(v.shape) for name, v in blank.state_dict().items()} == {
        name: tuple(v.shape) for name, v in text_unet().state_dict().items()
    }
    assert all(p.is_meta for p in blank.parameters())
    assert plan_carrier(blank).sites == plan_carrier(text_unet()).sites


def test_none_without_a_carrier():
    assert blank_of(bound_record()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"denoiser": "AutoencoderKL"},
        {"denoiser": "os"},
        {"denoiser": "DiffusionPipeline"},
        {"layers_per_block": 10**6},
        {"layers_per_block": 200, "transformer_layers_per_block": 200},
        {"layers_per_block": [[300]]},
        {"cross_attention_dim": 10**9},
        {"block_out_channels": "wide"},
        {"down_block_types": ["NoSuchBlock"]},
        {"norm_num_groups": 0},
    ],
)
def test_a_strangers_architecture_is_refused(changes):
    with pytest.raises(RecordError, match="architecture"):
        blank_of(record(**changes))
