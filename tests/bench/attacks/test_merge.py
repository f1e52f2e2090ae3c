"""Merges end at both models."""

import pytest
import torch
from _attacks import attacked, same
from _tiny import tiny_unet


@pytest.mark.parametrize("name", ["merge", "slerp"])
def test_merges_end_at_both_models(context, name):
    assert same(attacked(context, name, weight=1.0, other="base"), tiny_unet(1), rtol=1e-4, atol=1e-5)
    assert same(attacked(context, name, weight=0.0, other="base"), context.base, rtol=1e-4, atol=1e-5)


def test_merge_is_linear_and_slerp_keeps_length(context):
    middle = attacked(context, "merge", weight=0.25, other="base").state_dict()
    name = "mid_block.resnets.0.conv1.weight"
    a, b = tiny_unet(1).state_dict()[name], context.base.state_dict()[name]
    assert torch.allclose(middle[name], 0.25 * a + 0.75 * b, atol=1e-6)
    arc = attacked(context, "slerp", weight=0.5, other="base").state_dict()[name]
    assert arc.norm().item() == pytest.approx((a.norm() + b.norm()).item() / 2, rel=0.02)
    assert middle[name].norm() < arc.norm()


def test_other_fine_tune_is_made_once(context):
    attacked(context, "merge", other="finetune", steps=2, lr=1e-2)
    files = list(context.folder.glob("partner-*.safetensors"))
    stamp = files[0].stat().st_mtime_ns
    first = attacked(context, "ties", density=1.0, steps=2, lr=1e-2)
    assert len(files) == 1 and files[0].stat().st_mtime_ns == stamp
    assert not same(first, tiny_unet(1), atol=1e-6)
