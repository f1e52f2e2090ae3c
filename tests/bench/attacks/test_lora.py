"""Adapters trained on a miniature, merged into it at a scale."""

from _attacks import attacked, same
from _tiny import tiny_unet


def test_lora_scale_zero_is_the_model_itself(context):
    assert same(attacked(context, "lora", steps=2, rank=2, batch_size=2, scale=0.0), tiny_unet(1), rtol=0, atol=1e-7)
