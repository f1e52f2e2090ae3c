"""Retraining of the layers that look marked."""

from _tiny import tiny_unet

from aiao_diffusers.bench.attacks.targeted import targeted
from aiao_diffusers.embedding.layer_profile import profile


def test_targeted_retrains_a_part_alone(context):
    attacked = targeted(tiny_unet(1), context, steps=2, guess=2, batch_size=2, share=0.3)
    changes = profile(tiny_unet(1), attacked).layers
    moved = [layer for layer in changes if layer.change > 0]
    assert moved and sum(layer.parameters for layer in moved) <= 0.3 * sum(layer.parameters for layer in changes)
