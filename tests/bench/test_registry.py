"""Attacks list their hyper-parameters."""

import pytest
from _attacks import attacked

from aiao_diffusers.bench.registry import ATTACKS
from aiao_diffusers.errors import ConfigError


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
