"""Overwriting embeds a mark of the attacker's own."""

import pytest
import torch
from _tiny import tiny_unet

from aiao_diffusers.bench.attacks.overwrite import attacker_key
from aiao_diffusers.bench.registry import ATTACKS
from aiao_diffusers.embedding.config import EmbedConfig
from aiao_diffusers.embedding.embed import embed


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [False, True])
def test_overwriting_leaves_a_mark_of_the_attackers_own(context, pairs):
    options = {"steps": 2, "batch_size": 2, "in_sites": 2, "out_sites": 2, "pairs": pairs}
    one, two = (ATTACKS["overwrite"].run(tiny_unet(1), context, count=count, **options) for count in (1, 2))
    config = EmbedConfig(seed=0, response=1.0, anchor=0.0, max_price=None, **options)
    mine = tiny_unet(1)
    embed(mine, attacker_key(0, 0), context.data, config, scheduler=context.scheduler)
    assert all(torch.equal(v, mine.state_dict()[n]) for n, v in one.state_dict().items())
    assert any(not torch.equal(v, one.state_dict()[n]) for n, v in two.state_dict().items())
    assert attacker_key(0, 0) != attacker_key(0, 1)
