"""What attackers see of a mark: the clean half of a forward is the plain model."""

import torch
from _attacks import ANSWERS

from aiao_diffusers.bench.attacks.exposed_mark import everything, expose


def test_clean_half_is_the_plain_model(context):
    with expose(context.base, context) as target, torch.no_grad():
        batch = target.draw(ANSWERS)
        eps, moved = target.forward(batch, target.masks(ANSWERS), torch.ones(ANSWERS))
        still = target.forward(batch, target.masks(ANSWERS), torch.zeros(ANSWERS))[1]
    plain = context.base(batch.noised, batch.t, **batch.keywords).sample
    assert torch.allclose(eps, plain, atol=1e-5)
    assert everything(still).item() < 1e-10 < everything(moved).item()
