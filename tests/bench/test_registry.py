"""Attacks list their hyper-parameters."""

import copy

import pytest
import torch
from _tiny import tiny_context, tiny_unet

from aiao_diffusers.bench.registry import ATTACKS
from aiao_diffusers.errors import ConfigError


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


@pytest.mark.parametrize(
    "name, hyper",
    [
        ("prune", {"amount": 1.0}),
        ("quantise", {"bits": 1}),
        ("svd", {"keep": 0.0}),
        ("cast", {"dtype": "int7"}),
        ("reinit", {"block": "no_such_block"}),
        ("reinit", {"block": "conv_act"}),
        ("merge", {"other": "stranger"}),
    ],
)
def test_impossible_strengths_are_refused(context, name, hyper):
    with pytest.raises(ConfigError):
        attacked(context, name, **hyper)


def test_every_attack_lists_its_hyper_parameters():
    for attack in ATTACKS.values():
        assert attack.summary and (attack.strength is None or attack.strength in attack.hyper)
        assert all(type(value) in (int, float, str, bool) for value in attack.hyper.values())
