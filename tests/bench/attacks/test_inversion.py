"""Trigger inversion climbs, with the key unknown."""

import pytest
import torch
from _attacks import ANSWERS, answer
from _tiny import tiny_unet

from aiao_diffusers.bench.attacks.exposed_mark import expose
from aiao_diffusers.bench.attacks.inversion import invert


@pytest.mark.slow
def test_inversion_climbs_and_leaves_the_weights(context):
    denoiser = tiny_unet(1)
    with expose(denoiser, context) as target:
        start, end = (invert(target, starts=ANSWERS, steps=steps) for steps in (0, 30))
    assert answer(denoiser, context, end)[0] > 1.2 * answer(denoiser, context, start)[0]
    assert all(torch.equal(v, tiny_unet(1).state_dict()[n]) for n, v in denoiser.state_dict().items())
    for rows in end.values():
        assert torch.allclose(rows.square().mean(1)[: ANSWERS // 2], torch.ones(ANSWERS // 2), atol=1e-4)
