"""A mark's masks as tables, and those of a batch."""

import numpy as np
import torch

from aiao_diffusers import WatermarkKey
from aiao_diffusers.mark.mark import Mark, select_rows
from aiao_diffusers.verification.evidence import key_sites


KEY = WatermarkKey(bytes(range(32)), "Demo")


def test_masks_of_a_mark_and_of_a_batch(begun):
    unet, record = begun
    ins, outs = key_sites(unet, KEY, record)
    one, each = (Mark(KEY, ins, outs, pairs).masks(torch.device("cpu")) for pairs in (False, True))
    width = ins[0].width_out
    assert {rows.shape for rows in one.values()} == {(1, width)}
    assert {rows.shape for rows in each.values()} == {(3, width)}
    assert Mark(KEY, ins, outs).draw_asked(4) is None
    assert set(Mark(KEY, ins, outs, True).draw_asked(100).tolist()) == {0, 1, 2}
    batch = select_rows(each, torch.tensor([2, 0]))[ins[0].name]
    wanted = [KEY.trigger_mask(ins[0].name, width, outs[number].name) for number in (2, 0)]
    assert np.array_equal(batch.numpy(), np.stack(wanted))
