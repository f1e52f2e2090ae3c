"""What was saved under the name of weights is told by its first bytes, and sound weights never are."""

import struct

import pytest

from aiao_diffusers.errors import UnsafeFileError
from aiao_diffusers.files.mistaken import mistaken_for
from aiao_diffusers.files.safetensors_header import header_length, read_header
from aiao_diffusers.files.strict_json import read_json
from aiao_diffusers.formats.detect import detect
from tests.samples import MISTAKEN


@pytest.mark.parametrize("name", MISTAKEN)
def test_as_weights(tmp_path, name):
    content, words = MISTAKEN[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for call in (read_header, detect):
        with pytest.raises(UnsafeFileError) as caught:
            call(path)
        assert words in str(caught.value) and "x.safetensors" in str(caught.value)


@pytest.mark.parametrize("name", ["pointer", "page"])
def test_as_a_config(tmp_path, name):
    content, words = MISTAKEN[name]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UnsafeFileError) as caught:
        read_json(tmp_path / "config.json")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["pointer", "page", "error"])
def test_by_its_first_eight_bytes(tmp_path, name):
    """As many as a ranged request of a length asks for."""
    content, words = MISTAKEN[name]
    with pytest.raises(UnsafeFileError) as caught:
        header_length(tmp_path / "x.safetensors", content[:8], len(content))
    assert words.partition(":")[0] in str(caught.value)


def test_a_sound_file_may_begin_with_a_brace(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(ord("{"))
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert path.read_bytes().startswith(b"{") and "a" in read_header(path).tensors


def test_what_is_nothing_of_the_kind():
    for start in (b"", b"v", b"version 2", b"\x80\x04\x95\0\0\0\0\0", bytes(8), b"{\0\0\0\0\0\0\0"):
        assert mistaken_for(start) is None
    assert len(mistaken_for(b'{"error": "' + b"x" * 100_000 + b'"}')) < 200
