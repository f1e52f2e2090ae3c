"""Attacks that train: they change finite weights and repeat."""

import pytest
import torch
from _attacks import attacked, same
from _tiny import tiny_unet


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, hyper",
    [
        ("finetune", {"steps": 2, "lr": 1e-3}),
        ("finetune", {"steps": 2, "lr": 1e-3, "ema": 0.9}),
        ("sequential", {"steps": 1, "lr": 1e-3}),
        ("lora", {"steps": 2, "rank": 2}),
        ("lora", {"steps": 2, "rank": 2, "count": 2}),
        ("distil", {"steps": 2}),
        ("distil", {"steps": 2, "student": "fresh"}),
        ("lcm", {"steps": 2, "lr": 1e-3}),
        ("invariance", {"steps": 2}),
        ("probing", {"steps": 2, "probes": 4, "directions": 2}),
        ("inversion", {"steps": 2, "starts": 4, "ascent": 2}),
        ("targeted", {"steps": 2, "guess": 2}),
    ],
)
def test_training_attacks_change_finite_weights_and_repeat(context, name, hyper):
    after = attacked(context, name, batch_size=2, **hyper)
    assert not same(after, tiny_unet(1), rtol=0, atol=0)
    assert all(torch.isfinite(value).all() for value in after.state_dict().values())
    assert set(after.state_dict()) == set(tiny_unet(1).state_dict())  # no adapter left on it
    assert same(after, attacked(context, name, batch_size=2, **hyper), rtol=0, atol=1e-6)
