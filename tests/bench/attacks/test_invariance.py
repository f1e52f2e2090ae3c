"""Training against random masks lowers what they move, with the key unknown."""

import pytest
from _attacks import answer
from _tiny import tiny_unet

from aiao_diffusers.bench.registry import ATTACKS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["invariance", "inversion"])
def test_random_masks_move_less_afterwards(context, name):
    attacked = ATTACKS[name].run(tiny_unet(1), context, steps=30, lr=3e-3, weight=10.0)
    assert answer(attacked, context)[0] < 0.7 * answer(tiny_unet(1), context)[0]
