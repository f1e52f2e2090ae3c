"""JSON of strangers: an object, bounded, each name once, numbers that are numbers."""

import sys

import pytest

from aiao_diffusers.errors import SuspectError, UnsafeFileError
from aiao_diffusers.files import strict_json
from aiao_diffusers.files.strict_json import parse_json, read_json


@pytest.mark.parametrize(
    "raw, words",
    [
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
        (b'{"a": {"b": 1, "b": 2}}', "duplicate key 'b'"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not"),
        (b"[1]", "holds a JSON list, expected an object"),
        (b'{"a": ', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": ' + b"[" * 10**5, "not valid JSON"),
    ],
)
def test_refused(raw, words):
    with pytest.raises(UnsafeFileError, match=f"here.*{words}"):
        parse_json(raw, "here")


def test_read(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    with pytest.raises(SuspectError, match="does not exist"):
        read_json(path)
    path.write_text('{"a": [1, null, "\\u00e9"]}')
    assert read_json(path) == {"a": [1, None, "é"]}
    monkeypatch.setattr(strict_json, "MAX_JSON_BYTES", 8)
    with pytest.raises(UnsafeFileError, match="at most 8"):
        read_json(path)


def test_deep_json_under_a_lifted_recursion_limit():
    """As some libraries leave it behind; the parser of `json` would then run through the end of the C stack."""
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(10**6)
        with pytest.raises(UnsafeFileError, match="in each other"):
            parse_json(b'{"a": ' + b'[{"b":' * 10**5, "here")
        text = b'{"a": "' + b"[" * 10**4 + b'\\"[", "b": [' + b"[]," * 9999 + b"[]]}"
        assert len(parse_json(text, "here")["b"]) == 10**4
    finally:
        sys.setrecursionlimit(limit)
