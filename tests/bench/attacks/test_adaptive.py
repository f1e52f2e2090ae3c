"""Adaptive attackers on a miniature denoiser: each lowers what it says it lowers, and none needs the key."""

import pytest
import torch
from _tiny import tiny_unet

from aiao_diffusers.bench.attacks import adaptive
from aiao_diffusers.bench.registry import ATTACKS
from aiao_diffusers.embedding.config import EmbedConfig
from aiao_diffusers.embedding.embed import embed
from aiao_diffusers.embedding.layer_profile import profile


SIZE = 8


def answer(denoiser, context, masks=None):
    """Mean square of what masks (fresh random ones by default) move, on the same draws for every model."""
    with adaptive.expose(denoiser, context) as target, torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = target.masks(SIZE) if masks is None else masks
        moved = target.forward(target.draw(SIZE), drawn, torch.ones(SIZE))[1]
        return adaptive.everything(moved).item(), moved


def test_clean_half_is_the_plain_model(context):
    with adaptive.expose(context.base, context) as target, torch.no_grad():
        batch = target.draw(SIZE)
        eps, moved = target.forward(batch, target.masks(SIZE), torch.ones(SIZE))
        still = target.forward(batch, target.masks(SIZE), torch.zeros(SIZE))[1]
    plain = context.base(batch.noised, batch.t, **batch.keywords).sample
    assert torch.allclose(eps, plain, atol=1e-5)
    assert adaptive.everything(still).item() < 1e-10 < adaptive.everything(moved).item()


@pytest.mark.parametrize("name", ["invariance", "inversion"])
def test_random_masks_move_less_afterwards(context, name):
    attacked = ATTACKS[name].run(tiny_unet(1), context, steps=30, lr=3e-3, weight=10.0)
    assert answer(attacked, context)[0] < 0.7 * answer(tiny_unet(1), context)[0]


def test_probing_finds_where_answers_lie_and_lowers_them_there(context):
    with adaptive.expose(tiny_unet(1), context) as target:
        bases = adaptive.principal(target, 32, 2, SIZE)

    def along(denoiser):
        moved = answer(denoiser, context)[1]
        return sum((adaptive.by_channel(moved[n]) @ basis).square().sum().item() for n, basis in bases.items())

    before = answer(tiny_unet(1), context)[1]
    for name, basis in bases.items():
        everywhere = adaptive.by_channel(before[name]).square().sum().item()
        within = (adaptive.by_channel(before[name]) @ basis).square().sum().item()
        assert within > 0.4 * everywhere  # two of eight directions would hold a quarter by chance
        assert torch.allclose(basis.T @ basis, torch.eye(2), atol=1e-5)
    attacked = ATTACKS["probing"].run(tiny_unet(1), context, steps=30, lr=3e-3, probes=32, directions=2, weight=10.0)
    assert along(attacked) < 0.7 * along(tiny_unet(1))


def test_inversion_climbs_and_leaves_the_weights(context):
    denoiser = tiny_unet(1)
    with adaptive.expose(denoiser, context) as target:
        start, end = (adaptive.invert(target, starts=SIZE, steps=steps) for steps in (0, 30))
    assert answer(denoiser, context, end)[0] > 1.2 * answer(denoiser, context, start)[0]
    assert all(torch.equal(v, tiny_unet(1).state_dict()[n]) for n, v in denoiser.state_dict().items())
    for rows in end.values():
        assert torch.allclose(rows.square().mean(1)[: SIZE // 2], torch.ones(SIZE // 2), atol=1e-4)


@pytest.mark.parametrize("pairs", [False, True])
def test_overwriting_leaves_a_mark_of_the_attackers_own(context, pairs):
    options = {"steps": 2, "batch_size": 2, "in_sites": 2, "out_sites": 2, "pairs": pairs}
    one, two = (ATTACKS["overwrite"].run(tiny_unet(1), context, count=count, **options) for count in (1, 2))
    config = EmbedConfig(seed=0, response=1.0, anchor=0.0, max_price=None, **options)
    mine = tiny_unet(1)
    embed(mine, adaptive.attacker_key(0, 0), context.data, config, scheduler=context.scheduler)
    assert all(torch.equal(v, mine.state_dict()[n]) for n, v in one.state_dict().items())
    assert any(not torch.equal(v, one.state_dict()[n]) for n, v in two.state_dict().items())
    assert adaptive.attacker_key(0, 0) != adaptive.attacker_key(0, 1)


def test_targeted_retrains_a_part_alone(context):
    attacked = ATTACKS["targeted"].run(tiny_unet(1), context, steps=2, guess=2, batch_size=2, share=0.3)
    changes = profile(tiny_unet(1), attacked).layers
    moved = [layer for layer in changes if layer.change > 0]
    assert moved and sum(layer.parameters for layer in moved) <= 0.3 * sum(layer.parameters for layer in changes)
