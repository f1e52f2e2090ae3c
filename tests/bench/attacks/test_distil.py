"""Distillation: the student comes nearer to what the marked model predicts, and takes none of its weights."""

import pytest
import torch
from _tiny import tiny_unet

from aiao_diffusers.bench.attacks.distil import distil
from aiao_diffusers.denoiser.price import predictions
from aiao_diffusers.errors import ConfigError


def distance(one, other, context):
    """Mean square between two models' predictions on the attacker's data."""
    a, b = (predictions(model, context.data, context.scheduler)[0] for model in (one, other))
    return (a - b).square().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("student", ["base", "fresh"])
def test_a_student_comes_nearer_to_the_marked_model(context, student):
    marked = tiny_unet(1)
    before = {name: value.clone() for name, value in marked.state_dict().items()}
    begun, taught = (distil(marked, context, steps=n, lr=3e-3, batch_size=4, student=student) for n in (0, 30))
    assert distance(taught, marked, context) < 0.7 * distance(begun, marked, context)
    assert all(torch.equal(value, before[name]) for name, value in marked.state_dict().items())
    assert not any(
        torch.equal(a, b) for a, b in zip(taught.parameters(), marked.parameters(), strict=True) if a.ndim > 1
    )


def test_an_unknown_student_is_refused_with_the_nearest(context):
    with pytest.raises(ConfigError, match="did you mean 'fresh'"):
        distil(tiny_unet(1), context, steps=1, student="freshh")
