"""Inversion finds nothing in an unmarked model, and a planted mask."""

import copy

import pytest
import torch
from _tiny import tiny_unet

from aiao_diffusers import EmbedConfig, WatermarkKey, embed
from aiao_diffusers.bench.audits.inversion import _best, _cosine, nearness
from aiao_diffusers.mark.mark import Mark
from aiao_diffusers.verification.evidence import key_sites


KEY = WatermarkKey(bytes(range(32)), "Demo")


@pytest.mark.slow
def test_inversion_looks_for_every_mask(begun):
    unet, record = begun
    ins, outs = key_sites(unet, KEY, record)
    hidden = torch.from_numpy(KEY.trigger_mask(ins[1].name, ins[1].width_out, outs[2].name)).float()
    found = {site.name: torch.randn(2, site.width_out, generator=torch.Generator().manual_seed(1)) for site in ins}
    found[ins[1].name][1] = -hidden
    assert _cosine(found, Mark(KEY, ins, outs, True)) == pytest.approx(1.0)
    assert _cosine(found, Mark(KEY, ins, outs)) < 0.9


def test_a_mask_that_calls_up_one_out_site_is_found():
    random = torch.Generator().manual_seed(0)
    rows = {name: torch.randn(2, 64, generator=random) for name in "abcdefg"}
    rows["d"][1] = torch.from_numpy(KEY.response_pattern("d", 64)).float()
    assert _best(rows, KEY, 2, True) < -10 < -6 < _best(rows, KEY, 2, False)
    del rows["d"]
    assert _best(rows, KEY, 2, True) > -3  # control


@pytest.mark.slow
def test_nearness_of_an_unmarked_model_is_that_of_any_key(context):
    key, denoiser = WatermarkKey(bytes(range(32)), "Test"), tiny_unet(1)
    config = EmbedConfig(steps=1, batch_size=2, in_sites=1, out_sites=1)
    record = embed(copy.deepcopy(denoiser), key, context.data, config, scheduler=context.scheduler).record
    found = nearness(denoiser, key, record, context, starts=4, steps=2)
    assert 0.01 < found.p <= 1 and len(found.others) == 200 and 0 <= found.cosine <= 1
    assert found.log10_p > -5 and found.random_log10_p > -5
