"""A pipeline with two denoisers: both are marked under one key, or one by name; a failure gives both their weights back."""

import copy

import pytest
import torch

from aiao_diffusers import EmbedConfig, embed, verify
from aiao_diffusers.denoiser.encode import prepare
from aiao_diffusers.embedding import embed as module
from aiao_diffusers.errors import ConfigError, TrainingError

from . import FAMILIES
from .end_to_end import KEY, PLAN, PROMPTS, RECIPE


FAMILY = FAMILIES["wan_2_2"]


@pytest.fixture(scope="module")
def data():
    return prepare(FAMILY.build(), PROMPTS[:4], options=FAMILY.options)


def weights(pipe):
    return {name: copy.deepcopy(getattr(pipe, name).state_dict()) for name in ("transformer", "transformer_2")}


def changed(before, after):
    return {
        name
        for name, state in before.items()
        if not all(torch.equal(value, after[name][key]) for key, value in state.items())
    }


def run(pipe, data, **options):
    return embed(pipe, KEY, data, EmbedConfig(steps=2, **RECIPE), **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the mark is too weak")
class TestBoth:
    def test_one_record_reads_either(self, data):
        pipe = FAMILY.build()
        before = weights(pipe)
        report = run(pipe, data)
        assert changed(before, weights(pipe)) == {"transformer", "transformer_2"}
        assert set(report.others) == {"transformer_2"} and set(report.to_dict()["others"]) == {"transformer_2"}
        second = report.others["transformer_2"].record
        assert report.record.loudness == second.loudness and report.record.layout == second.layout
        for denoiser in (pipe.transformer, pipe.transformer_2):
            assert verify(denoiser, KEY, record=report.record, **PLAN).log10_p is not None

    def test_one_by_name(self, data):
        pipe = FAMILY.build()
        before = weights(pipe)
        assert not run(pipe, data, denoiser="transformer_2").others
        assert changed(before, weights(pipe)) == {"transformer_2"}

    def test_a_failure_in_the_second_gives_both_their_weights_back(self, data, monkeypatch):
        pipe, begun = FAMILY.build(), []
        before, mark = weights(pipe), module._mark_one

        def failing(*args):
            begun.append(args)
            if len(begun) == 2:
                raise TrainingError("the disk is full")
            return mark(*args)

        monkeypatch.setattr(module, "_mark_one", failing)
        with pytest.raises(TrainingError, match="disk is full"):
            run(pipe, data)
        assert len(begun) == 2 and not changed(before, weights(pipe))


class TestRefusals:
    def test_a_name_that_is_none(self, data):
        with pytest.raises(ConfigError, match="no denoiser 'unet': it has transformer, transformer_2"):
            run(FAMILY.build(), data, denoiser="unet")

    def test_what_belongs_to_one(self, data):
        with pytest.raises(ConfigError, match="keep belongs to one denoiser"):
            run(FAMILY.build(), data, keep=[KEY.child("first")])
