"""FLOPs: counted by hand, by geometry and on random weights."""

import dataclasses

import pytest
import torch
from _geometry import SMALL
from diffusers import UNet2DConditionModel

from aiao_diffusers.bench.audits import flops


@pytest.mark.slow
def test_masks_for_pairs_are_counted_as_a_verdict_spends_them():
    unet = flops.random_model(UNet2DConditionModel, SMALL, torch.float32)
    record = dataclasses.replace(flops.record_for(unet, SMALL["sample_size"]), pairs=True)
    spent = flops.flops(lambda: flops.first_look(unet, record)) / flops.flops(lambda: flops.forward(unet, record))
    assert flops.geometry_flops(SMALL, reduced=8)["pairs"]["forwards"] == pytest.approx(spent)


@pytest.mark.slow
def test_flops_by_hand():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert flops.flops(lambda: a @ b) == 2 * 3 * 5 * 7
    q = torch.ones(2, 3, 11, 8)  # batch, heads, tokens, width: two products of 11 x 11 x 8 a head
    attention = torch.nn.functional.scaled_dot_product_attention
    assert flops.flops(lambda: attention(q, q, q)) == 2 * 3 * 2 * (2 * 11 * 11 * 8)


@pytest.mark.slow
def test_sd15_geometry():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**flops.SD15)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
