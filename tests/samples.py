"""Small files that the tests put into repositories."""

import json
import struct


CARD = b"---\nlicense: mit\nbase_model: acme/sd\ntags: [text-to-image]\n---\n# Hello\n"


def safetensors(*names: str, padding: int = 0) -> bytes:
    """A valid file with one float32 of shape (2,) for each name."""
    header = {name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]} for i, name in enumerate(names)}
    text = json.dumps({"__metadata__": {"padding": "x" * padding}, **header}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8 * len(names))


def card(**fields: object) -> bytes:
    return f"---\n{json.dumps({'license': 'mit', **fields})}\n---\n".encode()
