"""How a denoiser is called: by keyword, and without the variances that some predict beside the noise."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from _tiny import run, tiny_unconditional, tiny_unet
from torch import nn

from aiao_diffusers.denoiser.call import DenoiserCall, Keywords, evaluate, prediction
from aiao_diffusers.errors import DataError


def test_it_is_the_plain_call():
    random = torch.Generator().manual_seed(7)
    sample, text = torch.randn(2, 4, 8, 8, generator=random), torch.randn(2, 5, 12, generator=random)
    with torch.no_grad():
        found = prediction(tiny_unet(), sample, torch.tensor([10, 500]), {"encoder_hidden_states": text})
    assert torch.equal(found, run(tiny_unet()))


def test_variances_are_left_out():
    unet, sample = tiny_unconditional(out_channels=6), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        whole, found = unet(sample, 5).sample, prediction(unet, sample, torch.tensor([5, 5]), {})
    assert whole.shape[1] == 6 and torch.equal(found, whole[:, :3])


def test_the_keywords_arrive():
    seen = {}

    def denoiser(sample, timestep, **keywords):
        seen.update(keywords, timestep=timestep)
        return SimpleNamespace(sample=sample)

    sample = torch.zeros(1, 2, 3)
    assert prediction(denoiser, sample, torch.tensor([4]), {"added.a": 1}) is not None
    assert seen == {"timestep": torch.tensor([4]), "added": {"a": 1}}


class Recorder(nn.Module):
    """A denoiser of a family's kind: keeps what it is called with and answers with its sample."""

    def forward(
        self, hidden_states, timestep, context=None, tables=None, flag=None, shapes=None, rows=None, extra=None
    ):
        self.seen = dict(locals())
        joined = torch.stack(hidden_states) if isinstance(hidden_states, list) else hidden_states
        return (-joined,)


def called(call, rows=None, sample=None, level=None):
    sample = torch.randn(2, 3, 4) if sample is None else sample
    denoiser, level = Recorder(), torch.tensor([250.0, 750.0]) if level is None else level
    return sample, evaluate(denoiser, sample, level, Keywords(rows or {}, call)), denoiser.seen


class TestEvaluate:
    def test_names_time_and_sign(self):
        call = DenoiserCall(sample="hidden_states", times={"timestep": (-1e-3, 1.0)}, sign=-1.0)
        sample, predicted, seen = called(call)
        assert torch.equal(predicted, sample) and torch.allclose(seen["timestep"], torch.tensor([0.75, 0.25]))

    def test_integer_times_become_floating_where_the_pipeline_makes_them_so(self):
        level = torch.tensor([1, 2])
        for floating in (False, True):
            call = DenoiserCall(sample="hidden_states", floating=floating)
            assert called(call, level=level)[2]["timestep"].is_floating_point() is floating

    def test_times_keep_single_precision_where_the_pipeline_keeps_it(self):
        sample, level = torch.randn(2, 3, 4, dtype=torch.bfloat16), torch.tensor([667.0, 1.0])
        for single in (False, True):
            call = DenoiserCall(sample="hidden_states", single=single)
            time = called(call, sample=sample, level=level)[2]["timestep"]
            assert time.dtype == (torch.float32 if single else torch.bfloat16) and (float(time[0]) == 667) is single

    def test_times_are_divided_as_pipelines_divide_them(self):
        level = torch.arange(1, 1001).float()
        for line, wanted in (
            ((1e-3, 0.0), level / 1000),
            ((-1e-3, 1.0), (1000 - level) / 1000),
            ((1.0, -1.0), level - 1),
        ):
            call = DenoiserCall(sample="hidden_states", times={"timestep": line})
            assert torch.equal(called(call, sample=torch.zeros(1000, 1, 1), level=level)[2]["timestep"], wanted)

    def test_shared_tensors_are_no_rows_and_keep_their_precision(self):
        table = torch.rand(5, 2)
        call = DenoiserCall(sample="hidden_states", shared={"tables.0": table, "tables.1": table.half()})
        seen = called(call, sample=torch.randn(2, 3, 4, dtype=torch.bfloat16))[2]
        assert torch.equal(seen["tables"][0], table) and seen["tables"][1].dtype == torch.bfloat16

    def test_lists_axes_constants_and_what_lies_beside(self):
        rows = {"context": torch.arange(8.0).view(2, 4), "rows_of.context": torch.tensor([1, 3])}
        rows |= {"extra": torch.ones(2, 6), "more": torch.zeros(2, 1, 4)}
        call = DenoiserCall(
            sample="hidden_states",
            listed=("context", "hidden_states"),
            ragged=("context",),
            axes={"extra": 1},
            fixed={"flag": True, "shapes": (1, 2)},
            each={"rows": [3]},
            beside=("more", 1),
        )
        denoiser, sample = Recorder(), torch.randn(2, 3, 4)
        predicted = evaluate(denoiser, sample, torch.tensor([1.0, 2.0]), Keywords(rows, call))
        seen = denoiser.seen
        assert [len(row) for row in seen["context"]] == [1, 3] and seen["extra"].shape == (6, 2)
        assert seen["flag"] is True and seen["shapes"] == (1, 2) and seen["rows"] == [[3], [3]]
        assert predicted.shape == (2, 4, 4) and torch.equal(predicted[:, :3], -sample)

    def test_an_axis_that_only_the_denoiser_has(self):
        call = DenoiserCall(sample="hidden_states", unit_axis=2)
        sample, predicted, seen = called(call)
        assert seen["hidden_states"].shape == (2, 3, 1, 4) and torch.equal(predicted, -sample)


class TestDenoiserCall:
    CALL = DenoiserCall(
        sample="x",
        times={"t": (0.001, 0.0)},
        sign=-1.0,
        listed=("x",),
        beside=("more", 1),
        axes={"a": 1},
        fixed={"shapes": [(1, 2), 3]},
        shared={"ids": torch.ones(2, 2)},
    )

    def test_survives_json(self):
        again = DenoiserCall.from_json(self.CALL.to_json(), self.CALL.shared)
        assert again == self.CALL and again.fixed == {"shapes": [(1, 2), 3]}
        assert "single" not in self.CALL.to_json()
        single = dataclasses.replace(self.CALL, single=True)
        assert DenoiserCall.from_json(single.to_json(), single.shared).single

    def test_a_mask_is_no_way_into_the_blocks(self):
        DenoiserCall(axes={"joint_attention_kwargs.attention_mask": 1})
        for name in (
            "joint_attention_kwargs.attention_mask.0",
            "attention_kwargs",
            "joint_attention_kwargs.attention_masks",
        ):
            with pytest.raises(DataError):
                DenoiserCall(axes={name: 1})

    @pytest.mark.parametrize(
        "change",
        [
            {"sample": "__class__.x y"},
            {"sample": "down_block_additional_residuals"},
            {"fixed": {"joint_attention_kwargs": {"scale": 0}}},
            {"shared": {"controlnet_block_samples": torch.ones(1)}},
            {"sign": 0.5},
            {"single": 1},
            {"unit_axis": -1},
            {"times": {}},
            {"times": {"t": (float("nan"), 0.0)}},
            {"fixed": {"x": object()}},
            {"fixed": {"x": [[[[[[[[1]]]]]]]]}},
            {"fixed": {f"a{i}": 1 for i in range(300)}},
            {"each": {"x": "a" * 300}},
            {"beside": ("a", 9)},
            {"axes": {"a": "1"}},
        ],
    )
    def test_nonsense_and_reaching_into_blocks_are_refused(self, change):
        with pytest.raises(DataError, match="denoiser's call"):
            DenoiserCall(**change)

    @pytest.mark.parametrize(
        "text", ["", "[]", '{"sample": 3}', '{"other": 1}', '{"sign": "x"}', " " * 20000, "{" * 900]
    )
    def test_a_text_that_is_none_is_refused(self, text):
        with pytest.raises(DataError):
            DenoiserCall.from_json(text, {})

    def test_names_must_be_the_denoisers(self):
        DenoiserCall(sample="hidden_states").check_fits(Recorder())
        with pytest.raises(DataError, match="Recorder takes no argument 'x'"):
            DenoiserCall(sample="x").check_fits(Recorder())


def test_keywords_keep_their_call():
    call = DenoiserCall(sample="x")
    made = Keywords({"a": torch.ones(2)}, call).map(lambda value: value + 1).with_values({"b": torch.zeros(2)})
    assert made.call is call and torch.equal(made["a"], torch.full((2,), 2.0)) and set(made) == {"a", "b"}
