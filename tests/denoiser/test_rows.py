"""Rows of a call as tensors, those of several lengths padded."""

from dataclasses import replace

import pytest
import torch

from aiao_diffusers.denoiser.call import DenoiserCall
from aiao_diffusers.denoiser.recording import Called, NotUnderstoodError, Step
from aiao_diffusers.denoiser.rows import assembled, on_cpu, rows_like, same


CALL = DenoiserCall(
    listed=("caps",), axes={"wide": 1}, beside=("beside", 1), shared={"ids.0": torch.zeros(2)}, each={"shapes": 1}
)


def step(**changes):
    arguments = {
        "sample": torch.cat([torch.zeros(2, 3, 4), torch.ones(2, 1, 4)], 1),
        "timestep": torch.tensor(5),
        "caps": [torch.ones(2, 6), torch.ones(3, 6)],
        "wide": torch.ones(7, 2),
        "ids": (torch.arange(2.0),),
        "shapes": [8, 8],
    }
    predicted = torch.randn(2, 3, 4)
    return Step([Called({**arguments, **changes}, predicted)], predicted, 5, torch.zeros(2, 3, 4))


def test_a_step_is_taken_apart_as_the_call_says():
    call, rows = rows_like(CALL, ["caps", "wide", "beside"], step())
    assert rows["wide"].shape == (2, 7) and torch.equal(rows["beside"], torch.ones(2, 1, 4))
    assert torch.equal(call.shared["ids.0"], torch.arange(2.0)) and call.each == {"shapes": 8}
    call, made = assembled(call, rows)
    assert call.ragged == ("caps",) and made["rows_of.caps"].tolist() == [2, 3] and made["caps"].shape == (2, 3, 6)
    assert not made["caps"][0, 2].any()


def test_lists_of_one_length_are_stacked():
    call, made = assembled(replace(CALL, ragged=("caps",)), {"caps": [torch.ones(2, 6)] * 3})
    assert call.ragged == () and made["caps"].shape == (3, 2, 6) and set(made) == {"caps"}


def test_lists_that_differ_in_more_are_refused():
    with pytest.raises(NotUnderstoodError, match="differ in more than their length"):
        assembled(CALL, {"caps": [torch.ones(2, 6), torch.ones(2, 5)]})


def test_a_step_of_another_call_is_refused():
    with pytest.raises(NotUnderstoodError, match="'mask' was not there before"):
        rows_like(CALL, ["caps", "wide"], step(mask=torch.ones(2)))
    with pytest.raises(NotUnderstoodError, match="is missing"):
        rows_like(CALL, ["caps", "wide", "other"], step())
    with pytest.raises(NotUnderstoodError, match="mixes"):
        rows_like(CALL, ["caps"], replace(step(), given=torch.randn(2, 3, 4)))


def test_on_the_cpu_in_single_precision():
    found = on_cpu([torch.ones(2, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bool)])
    assert [value.dtype for value in found] == [torch.float32, torch.bool]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (torch.ones(2), torch.ones(2), True),
        (torch.ones(2), torch.zeros(2), False),
        ({"a": [torch.ones(1)]}, {"a": [torch.ones(1)]}, True),
        ({"a": 1}, {"b": 1}, False),
        ((1, 2), (1,), False),
        (3, 3, True),
    ],
)
def test_what_is_the_same(one, other, expected):
    assert same(one, other) is expected
