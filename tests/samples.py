"""Small files that the tests put into repositories."""

import json
import struct


CARD = b"---\nlicense: mit\nbase_model: acme/sd\ntags: [text-to-image]\n---\n# Hello\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
PAGE = b"<!doctype html><html><body>Not found</body></html>"
MISTAKEN = {
    "pointer": (POINTER, "is a git-lfs pointer: run `git lfs pull`"),
    "page": (PAGE, "is an HTML page"),
    "page behind a blank line": (b"\n\n<HTML lang='en'>\n<head></head></HTML>", "is an HTML page"),
    "error": (b'{"error": "Repository not found"}', "is a JSON document: 'Repository not found'"),
    "nested error": (b'{"status": 401, "error": {"code": 3, "message": "no token"}}', "JSON document: 'no token'"),
    "list": (b'[{"detail": "rate limit"}]', "JSON document: 'rate limit'"),
    "cut": (b'{"weight_map": {"conv_in.weight": "a.safe', "JSON document: '{"),
}
"""What is saved in place of a file of weights: its bytes, and what it is said to be."""


def safetensors(*names: str, padding: int = 0) -> bytes:
    """A valid file with one float32 of shape (2,) for each name."""
    header = {name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]} for i, name in enumerate(names)}
    text = json.dumps({"__metadata__": {"padding": "x" * padding}, **header}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8 * len(names))


def card(**fields: object) -> bytes:
    return f"---\n{json.dumps({'license': 'mit', **fields})}\n---\n".encode()
