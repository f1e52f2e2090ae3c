"""Fields of an embedding that cannot be are named."""

import dataclasses
import json

import numpy as np
import pytest

from aiao_diffusers import EmbedConfig
from aiao_diffusers.errors import ConfigError


CONFIG = EmbedConfig(
    steps=0, edit=1.0, in_sites=2, out_sites=2, kept_share=1.0, max_price=None, bank_size=4, lineage=0
)


class TestPairs:
    @pytest.mark.parametrize("value", [1, "yes", None])
    def test_neither_true_nor_false(self, value):
        with pytest.raises(ConfigError, match="pairs"):
            EmbedConfig(pairs=value)

    def test_no_edit_in_closed_form(self):
        with pytest.raises(ConfigError, match="edit must be 0 with pairs=True"):
            EmbedConfig(pairs=True, edit=1.0)


class TestConfig:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *[("steps", v) for v in (0, 1.5, True, "9", None)],
            *[("lr", v) for v in (0, -1.0, float("nan"), float("inf"), "x")],
            *[("eps", -1.0), ("dec", float("nan")), ("train", "half"), ("lazy_share", 0), ("lazy_share", 1.1)],
            *[("accumulate", 0), ("accumulate", 13), ("stop_bits", 0.5), ("stop_bits", 1.1), ("max_unreadable", 1)],
            *[("seed", -1), ("rank", 0), ("check_every", 0), ("checkpoint_dir", 3), ("keep", -1)],
            *[("kept_share", 0), ("kept_share", 1.1), ("max_price", 0), ("max_price", float("nan"))],
            *[("anchor", -1), ("anchor", 2e3), ("loudest", 0.9), ("loudest", 101)],
        ],
    )
    def test_a_field_out_of_range_is_named(self, field, value):
        with pytest.raises(ConfigError, match=field):
            EmbedConfig(**{field: value})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"edit": 0.0}, "steps"),
        ({"edit": -0.1}, "edit"),
        ({"edit": float("nan")}, "edit"),
        ({"train": "lora"}, "edit"),
        ({"stop_bits": 0.9}, "stop_bits"),
        ({"train": "lazy"}, "edit"),
    ],
)
def test_settings_of_a_closed_form_that_cannot_be_are_named(changes, named):
    with pytest.raises(ConfigError, match=named):
        EmbedConfig(**CONFIG.__dict__ | changes)


def test_config_takes_numpys_numbers_as_plain_ones():
    config = EmbedConfig(steps=np.int64(3), kappa=np.float32(0.5), max_price=np.float64(0.25), seed=np.uint8(7))
    assert config == EmbedConfig(steps=3, kappa=0.5, max_price=0.25, seed=7)
    assert [type(x) for x in (config.steps, config.kappa, config.max_price, config.seed)] == [int, float, float, int]
    json.dumps(dataclasses.asdict(config))


@pytest.mark.parametrize("field", ["steps", "batch_size", "lr", "kappa", "eps"])
def test_config_names_the_bad_field(field):
    with pytest.raises(ConfigError, match=field):
        EmbedConfig(**{field: -1})
