"""Attacks on the weights do what they are named after."""

import pytest
import torch
from _attacks import attacked, same
from _tiny import tiny_unet

from aiao_diffusers.bench.attacks.weights import matrices


def test_none(context):
    assert same(attacked(context, "none"), tiny_unet(1), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_quantise(context, bits):
    for layer, before in zip(matrices(attacked(context, "quantise", bits=bits)), matrices(tiny_unet(1)), strict=True):
        rows, wanted = layer.weight.flatten(1), before.weight.flatten(1)
        step = wanted.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert all(len(row.unique()) <= 2**bits - 1 for row in rows)
        assert ((rows - wanted).abs() <= step / 2 + 1e-6).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cast(context, dtype):
    after = attacked(context, "cast", dtype=dtype)
    assert not same(after, tiny_unet(1), rtol=0, atol=0) and same(after, tiny_unet(1), rtol=1e-2, atol=1e-3)


def test_prune(context):
    for layer in matrices(attacked(context, "prune", amount=0.5)):
        assert (layer.weight == 0).float().mean().item() == pytest.approx(0.5, abs=1 / layer.weight.numel())
    for layer in matrices(attacked(context, "prune", amount=0.25, structured=True)):
        dead = (layer.weight.flatten(1) == 0).all(1).sum().item()
        assert dead == round(0.25 * len(layer.weight))


def test_noise(context):
    after, before = attacked(context, "noise", std=0.2).state_dict(), tiny_unet(1).state_dict()
    name = "mid_block.resnets.0.conv1.weight"
    ratio = (after[name] - before[name]).std() / before[name].std()
    assert ratio.item() == pytest.approx(0.2, rel=0.1)
    assert same(attacked(context, "noise"), attacked(context, "noise"), rtol=0, atol=0)  # the seed decides


def test_svd(context):
    for layer, before in zip(matrices(attacked(context, "svd", keep=0.5)), matrices(tiny_unet(1)), strict=True):
        flat = layer.weight.flatten(1)
        assert torch.linalg.matrix_rank(flat, rtol=1e-4) <= max(1, round(0.5 * min(flat.shape)))
        assert torch.linalg.matrix_rank(before.weight.flatten(1), rtol=1e-4) > 1 or min(flat.shape) == 1


def test_reinit_changes_its_block_alone(context):
    after = attacked(context, "reinit", block="mid_block")
    before = tiny_unet(1).state_dict()
    changed = {
        name.split(".")[0] for name, value in after.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"mid_block"}
