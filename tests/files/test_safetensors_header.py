"""Headers are checked before a tensor is read; hostile ones fail with a typed error."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aiao_diffusers.errors import NotTestableError, SuspectError, UnsafeFileError
from aiao_diffusers.files.safetensors_header import MAX_HEADER_BYTES, check_finite, load_tensors, read_header, stream
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import detect


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    return path


GOOD = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F16", "shape": [], "data_offsets": [8, 10]},
}


def raw(path: Path, header: str | dict, data: bytes = bytes(10), length: int | None = None) -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def changed(**fields: object) -> dict:
    return GOOD | {"a": GOOD["a"] | fields}


def test_a_file_that_shrinks_after_its_header_was_checked(tmp_path):
    path = save(tmp_path / "x.safetensors", {"a": torch.ones(4), "b": torch.ones(4)})
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UnsafeFileError, match="became shorter"):
        dict(stream(header))
    save(path, {"a": torch.ones(4), "longer": torch.ones(4)})
    with pytest.raises(UnsafeFileError, match="changed"):
        dict(stream(header))


class TestHeader:
    def test_a_good_one(self, tmp_path):
        header = read_header(raw(tmp_path / "x.safetensors", GOOD | {"__metadata__": {"k": "v"}}))
        assert header.tensors["a"].shape == (2,) and header.tensors["b"].dtype == "F16"
        assert header.metadata == {"k": "v"}

    def test_metadata_of_null_is_none(self, tmp_path):
        assert read_header(raw(tmp_path / "x.safetensors", GOOD | {"__metadata__": None})).metadata == {}

    def test_agrees_with_the_library_on_what_it_writes(self, tmp_path):
        state = {"z": torch.ones(3, 2), "y": torch.zeros(0, 4), "x": torch.tensor(1, dtype=torch.int64)}
        state["w"] = torch.ones(5).to(torch.float8_e4m3fn)
        save_file(state, tmp_path / "x.safetensors")
        header = read_header(tmp_path / "x.safetensors")
        assert {k: t.shape for k, t in header.tensors.items()} == {k: tuple(t.shape) for k, t in state.items()}
        loaded = load_tensors(tmp_path / "x.safetensors")
        assert all(torch.equal(loaded[k].float(), v.float()) for k, v in state.items())

    @pytest.mark.parametrize(
        ("header", "match"),
        [
            (changed(dtype="F33"), "unknown dtype"),
            (changed(dtype=["F32"]), "unknown dtype"),
            (changed(dtype="F64"), "does not fill"),
            (changed(shape=[3]), "does not fill"),
            (changed(shape=[2**62, 2**62]), "does not fill"),
            (changed(shape=[2**63, 2]), "does not fill"),
            (changed(shape=[-2]), "bad shape"),
            (changed(shape=[True, 2]), "bad shape"),
            (changed(shape=[2.0]), "bad shape"),
            (changed(shape=[1] * 9), "bad shape"),
            (changed(shape=2), "bad shape"),
            (changed(data_offsets=[8, 0]), "does not fill"),
            (changed(data_offsets=[-8, 0]), "bad data_offsets"),
            (changed(data_offsets=[0, 8, 9]), "bad data_offsets"),
            (changed(data_offsets=[2, 10]), "gap"),
            (GOOD | {"c": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "overlaps"),
            (GOOD | {"c": {"dtype": "F32", "shape": [1], "data_offsets": [10, 14]}}, "the file holds"),
            ({"a": GOOD["a"]}, "the file holds"),
            ({"a": {"dtype": "F32", "shape": [2]}}, "exactly dtype"),
            ({"a": GOOD["a"] | {"code": "x"}}, "exactly dtype"),
            ({"a": 3}, "exactly dtype"),
            ({"a\ud800": GOOD["a"], "b": GOOD["b"]}, "not printable"),
            ({"a\n": GOOD["a"], "b": GOOD["b"]}, "not printable"),
            (GOOD | {"__metadata__": {"k": 1}}, "text to text"),
            (GOOD | {"__metadata__": []}, "text to text"),
            ('{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": 1}', "duplicate"),
            ('{"a": {"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "duplicate"),
            ('{"a": NaN}', "not a JSON number"),
            ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "not valid JSON"),
            ('{"a": ' + "9" * 10_000 + "}", "not valid JSON"),
            ("{", "not valid JSON"),
            ("[]", "opening brace"),
            (" {}", "opening brace"),
        ],
        ids=lambda v: v[:24] if isinstance(v, str) else "",
    )
    def test_flaws(self, tmp_path, header, match):
        path = raw(tmp_path / "x.safetensors", header)
        for read in (read_header, load_tensors, detect):
            with pytest.raises(UnsafeFileError, match=match):
                read(path)

    @pytest.mark.parametrize("length", [2**64 - 1, 2**40, 400])
    def test_length_past_the_end(self, tmp_path, length):
        with pytest.raises(UnsafeFileError, match="past the end"):
            read_header(raw(tmp_path / "x.safetensors", GOOD, length=length))

    def test_huge_header_is_not_read(self, tmp_path):
        path = tmp_path / "x.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
            file.truncate(MAX_HEADER_BYTES + 100)  # sparse: costs no disk
        with pytest.raises(UnsafeFileError, match="are accepted"):
            read_header(path)

    def test_more_tensor_bytes_than_allowed(self, tmp_path):
        with pytest.raises(UnsafeFileError, match="at most 9"):
            read_header(raw(tmp_path / "x.safetensors", GOOD), max_bytes=9)

    def test_message_stays_short(self, tmp_path):
        with pytest.raises(UnsafeFileError) as caught:
            read_header(raw(tmp_path / "x.safetensors", {"k" * 100_000: 1}))
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.PTH", "x.ckpt", "x.pkl"])
    def test_pickles_are_refused_by_name(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"\x80\x04.")
        for call in (read_header, detect, load_denoiser):
            with pytest.raises(UnsafeFileError, match="run code"):
                call(tmp_path / name)

    @pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x04\x95\0", b"\x80\x02}q"])
    def test_pickles_are_refused_by_content(self, tmp_path, start):
        (tmp_path / "x.safetensors").write_bytes(start + b"\xff" * 100)
        with pytest.raises(UnsafeFileError, match="zip or pickle"):
            read_header(tmp_path / "x.safetensors")

    @pytest.mark.parametrize("size", [0, 7, 8])
    def test_too_small(self, tmp_path, size):
        (tmp_path / "x.safetensors").write_bytes(bytes(size))
        with pytest.raises(UnsafeFileError):
            read_header(tmp_path / "x.safetensors")

    def test_missing_and_special_files(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.safetensors")
        for name in ("none.safetensors", "pipe.safetensors"):
            with pytest.raises(SuspectError):
                read_header(tmp_path / name)


def test_check_finite_names_the_key():
    good = {"i": torch.tensor([1]), "e": torch.empty(0), "denormal": torch.tensor([1e-40])}
    check_finite(good | {"f8": torch.ones(2).to(torch.float8_e5m2)})
    for bad in (float("nan"), float("-inf")):
        for dtype in (torch.float32, torch.bfloat16, torch.float8_e5m2):
            with pytest.raises(NotTestableError, match="'culprit'"):
                check_finite(good | {"culprit": torch.tensor([1.0, bad]).to(dtype)})
