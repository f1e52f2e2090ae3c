"""Names for weights: the numbers count, not what they are stored as, and no two states share a name."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from _tiny import tiny_unet
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256, weights_sha256
from aiao_diffusers.errors import NotTestableError
from aiao_diffusers.files.safetensors_header import PIECE


def field(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def raw(path: Path, header: str | dict, data: bytes = bytes(10), length: int | None = None) -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


def test_fixed_vector():
    # The layout in the docstring, written out by hand: 1 and -2 are bfloat16 numbers.
    values = hashlib.sha256(struct.pack("<2H", 0x3F80, 0xC000)).digest()
    expected = b"aiao-values-v2\0" + field(b"w") + field(b"torch.bfloat16") + field(b"2") + values
    assert weights_sha256({"w": torch.tensor([1.0, -2.0])}) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_the_numbers_count_not_the_storage(dtype):
    torch.manual_seed(0)
    stored = torch.randn(3, PIECE // 2 + 5).to(dtype)  # several pieces
    wide = {torch.float32, torch.float64, dtype}
    assert len({weights_sha256({"w": stored.to(other)}) for other in wide}) == 1


@pytest.mark.parametrize(("value", "dtype"), [(1e-3, "float32"), (1 + 2**-10, "float16"), (1e30, "bfloat16")])
def test_each_tensor_is_written_as_narrow_as_it_can_be(value, dtype):
    tensor = torch.full((PIECE + 1,), 1.0)
    tensor[-1] = torch.tensor(value).to(getattr(torch, dtype)).float()  # seen in the last piece only
    raw = tensor.to(getattr(torch, dtype)).view(torch.uint8).numpy().tobytes()
    body = field(b"w") + field(f"torch.{dtype}".encode()) + field(str(len(tensor)).encode())
    expected = b"aiao-values-v2\0" + body + hashlib.sha256(raw).digest()
    assert weights_sha256({"w": tensor}) == hashlib.sha256(expected).hexdigest()


def test_float64_keeps_what_float32_cannot_hold():
    values = [1.0, 1.0 + 1e-12, 1e300, 1e200, 0.1, torch.tensor(0.1).item()]
    assert len({weights_sha256({"w": torch.tensor([v], dtype=torch.float64)}) for v in values}) == 6
    assert weights_sha256({"w": torch.tensor([0.1])}) == weights_sha256({"w": torch.tensor([0.1]).double()})


def test_complex_conjugates():
    w = torch.tensor([1 + 2j, 3 - 1j])
    assert (
        weights_sha256({"w": w.conj()}) == weights_sha256({"w": w.conj().resolve_conj()}) != weights_sha256({"w": w})
    )


def test_name_shape_kind_and_one_bit_count():
    a = torch.arange(6.0)
    flipped = a.clone().view(torch.int32)
    flipped[3] ^= 1
    others = [{"b": a}, {"a": a.int()}, {"a": a.reshape(2, 3)}, {"a": flipped.view(torch.float32)}, {"a": -a}]
    others += [{"a": a[:5], "b": a[5:]}, {"a": a, "b": torch.empty(0)}, {"a": a.bool()}, {}]
    assert len({weights_sha256(state) for state in [{"a": a}, *others]}) == 10


def test_minus_zero_is_another_number_and_order_none():
    a, b = torch.zeros(2), torch.tensor(3)
    assert weights_sha256({"a": a}) != weights_sha256({"a": -a})
    assert weights_sha256({"a": a, "b": b}) == weights_sha256({"b": b, "a": a})
    assert weights_sha256({"a": torch.arange(6.0).reshape(2, 3).T}) == weights_sha256(
        {"a": torch.arange(6.0).reshape(2, 3).T.contiguous()}
    )


def test_threads_change_nothing():
    unet, before = tiny_unet(), torch.get_num_threads()
    try:
        found = set()
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.add(weights_sha256(unet))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1 and found != {weights_sha256(tiny_unet(seed=1))}


def test_meta_tensors_have_none():
    with pytest.raises(NotTestableError):
        weights_sha256({"a": torch.empty(2, device="meta")})


class TestTensors:
    def test_fixed_vector(self):
        # sha256 over the layout in the docstring, written out by hand.
        def field(b: bytes) -> bytes:
            return struct.pack("<Q", len(b)) + b

        expected = hashlib.sha256(
            b"aiao-tensors-v1\0"
            + field(b"w")
            + field(b"torch.float16")
            + field(b"2")
            + field(struct.pack("<2e", 1, -2))
        ).hexdigest()
        assert tensor_sha256({"w": torch.tensor([1.0, -2.0], dtype=torch.float16)}) == expected

    def test_order_and_layout_do_not_matter(self):
        a, b = torch.arange(6.0).reshape(2, 3), torch.tensor(3)
        assert tensor_sha256({"a": a, "b": b}) == tensor_sha256({"b": b, "a": a.T.contiguous().T})

    def test_name_dtype_shape_and_one_bit_do(self):
        a = torch.arange(6.0)
        flipped = a.clone().view(torch.int32)
        flipped[3] ^= 1
        others = [
            {"b": a},
            {"a": a.double()},
            {"a": a.view(torch.int32)},
            {"a": a.reshape(2, 3)},
            {"a": flipped.view(torch.float32)},
            {"a": a[:5], "b": a[5:]},
            {},
        ]
        assert len({tensor_sha256(s) for s in [{"a": a}, *others]}) == 8

    def test_meta_tensors_have_none(self):
        with pytest.raises(NotTestableError):
            tensor_sha256({"a": torch.empty(2, device="meta")})


def test_no_data_at_all_is_not_testable():
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    with pytest.raises(NotTestableError, match="no data"):
        weights_sha256(empty)
