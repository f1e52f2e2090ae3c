"""Adapters trained on a miniature, merged into it at a scale."""

import copy

import pytest
import torch
from _tiny import tiny_context, tiny_unet

from aiao_diffusers.bench.registry import ATTACKS


@pytest.fixture
def context(tmp_path):
    return tiny_context(tmp_path)


def attacked(context, name, denoiser=None, **hyper):
    denoiser = tiny_unet(1) if denoiser is None else denoiser
    before = {n: v.clone() for n, v in context.base.state_dict().items()}
    after = ATTACKS[name].run(copy.deepcopy(denoiser), context, **hyper)
    assert all(
        torch.equal(v, before[n]) for n, v in context.base.state_dict().items()
    )  # the clean twin is not touched
    return after


def same(a, b, **tolerance):
    return all(torch.allclose(v, b.state_dict()[n], **tolerance) for n, v in a.state_dict().items())


def test_lora_scale_zero_is_the_model_itself(context):
    assert same(attacked(context, "lora", steps=2, rank=2, batch_size=2, scale=0.0), tiny_unet(1), rtol=0, atol=1e-7)
