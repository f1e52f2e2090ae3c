"""GGUF as ComfyUI-GGUF's converter writes it: rows of 256, the true shape in a field, numbers that the package unpacks."""

import numpy as np
import pytest
import torch
from _kind import extra

from aiao_diffusers.bench.audits.gguf_files import PACKINGS, merge_gguf, write_gguf


gguf = extra("gguf")
STATE = {
    "conv.weight": torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(0)),
    "odd.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(1)),
    "norm.bias": torch.linspace(-1, 1, 16),
    "zero.weight": torch.zeros(2, 256),
}
STEPS = {"F16": 2**-11, "Q8_0": 1 / 127, "Q4_0": 1 / 8, "Q6_K": 1 / 31}
"""The largest error of a number, as a share of the largest of its block: half a step, a whole one where scales are packed too."""


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_is_unpacked_is_near_what_was_packed(packing):
    found = merge_gguf(STATE, packing, rearranged=True)
    for name, value in STATE.items():
        largest = float(value.abs().max())
        assert float((found[name] - value).abs().max()) <= STEPS[packing] * largest
        assert found[name].shape == value.shape
    assert torch.equal(found["norm.bias"], STATE["norm.bias"]) and torch.equal(
        found["odd.weight"].half(), STATE["odd.weight"].half()
    )
    assert not torch.equal(found["conv.weight"], STATE["conv.weight"])


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_of_256_and_the_true_shape_in_a_field(tmp_path, packing):
    reader = gguf.GGUFReader(write_gguf(tmp_path / "x.gguf", STATE, packing, rearranged=True))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert [int(n) for n in tensors["conv.weight"].shape] == [256, 9]  # GGUF counts from the fastest
    assert tensors["conv.weight"].tensor_type.name == packing and tensors["norm.bias"].tensor_type.name == "F32"
    field = reader.get_field("comfy.gguf.orig_shape.conv.weight")
    assert [int(field.parts[i][0]) for i in field.data] == [16, 16, 3, 3]
    assert reader.get_field("comfy.gguf.orig_shape.zero.weight") is None
    raw = gguf.dequantize(tensors["conv.weight"].data, tensors["conv.weight"].tensor_type)
    expected = merge_gguf(STATE, packing, rearranged=True)["conv.weight"]
    assert np.array_equal(np.asarray(raw, np.float32).reshape(16, 16, 3, 3), expected.numpy())


def test_rows_of_their_own_where_no_converter_rearranged_them(tmp_path):
    reader = gguf.GGUFReader(write_gguf(tmp_path / "x.gguf", STATE, "Q8_0", rearranged=False))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds == {"conv.weight": "F32", "odd.weight": "F32", "norm.bias": "F32", "zero.weight": "Q8_0"}
