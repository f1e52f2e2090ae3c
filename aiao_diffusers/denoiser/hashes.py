"""Names for weights: SHA-256 over tensors as they are stored, and over the numbers a model stands for."""

import hashlib
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import torch
from torch import nn

from ..errors import NotTestableError
from ..files.safetensors_header import PIECE
from ..files.text import short
from .setup import Values


NARROW = (torch.bfloat16, torch.float16, torch.float32)


def tensor_sha256(source: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 of a state: independent of insertion order, device and file layout, not of dtype.

    Hashed per tensor, names in code-point order: byte length of the UTF-8 name, name, dtype, shape, little-endian bytes.
    Every field is length-prefixed, so no two states share an encoding.

    Raises:
        NotTestableError: a tensor has no data (meta device).
    """
    state = source.state_dict() if isinstance(source, nn.Module) else source
    digest = hashlib.sha256(b"aiao-tensors-v1\0")
    for name in sorted(state):
        tensor = _require_data(name, state[name])
        _write_fields(digest, name, str(tensor.dtype), ",".join(map(str, tensor.shape)))
        raw = _bytes(tensor.cpu().contiguous().reshape(-1))
        digest.update(struct.pack("<Q", len(raw)))
        digest.update(raw)
    return digest.hexdigest()


def weights_sha256(source: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 of the numbers that a denoiser's weights are, whatever they are stored as.

    Each tensor is written in the first of bfloat16, float16, float32 and its own dtype that holds its values exactly, so float16 weights
    loaded as float32 hash like the file they came from, and half-precision models cost half the hashing. The encoding is that
    of `tensor_sha256` with each tensor's bytes replaced by their SHA-256: tensors are hashed side by side, on as many threads
    as torch uses. Values are taken to be finite, as verification demands before it hashes.

    Raises:
        NotTestableError: a tensor has no data (meta device, nothing offloaded).
    Source: our choice.
    """
    values = Values(source) if isinstance(source, nn.Module) else source
    fetching = Lock()

    def hash_tensor(name: str) -> tuple[str, str, bytes]:
        with fetching:  # offloaded weights of one layer come and go together
            tensor = _require_data(name, values[name])
        dtype, content = _hash_narrowest(tensor.reshape(-1))
        return str(dtype), ",".join(map(str, tensor.shape)), content

    digest, names = hashlib.sha256(b"aiao-values-v2\0"), sorted(values)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for name, (dtype, shape, content) in zip(names, pool.map(hash_tensor, names), strict=True):
            _write_fields(digest, name, dtype, shape)
            digest.update(content)
    return digest.hexdigest()


def _hash_narrowest(flat: torch.Tensor) -> tuple[torch.dtype, bytes]:
    """The dtype that the values are hashed as, and the SHA-256 of their bytes in it."""
    stored = flat.dtype
    narrower = NARROW[: NARROW.index(stored)] if stored in NARROW else NARROW if stored.is_floating_point else ()
    for dtype in narrower:
        # Ends at the first piece that does not fit, which is nearly always the first of all.
        content = _digest(flat, dtype, exact=True)
        if content is not None:
            return dtype, content
    last = torch.float32 if stored.is_floating_point and stored.itemsize == 1 else stored
    content = _digest(flat, last, exact=False)
    assert content is not None
    return last, content


def _digest(flat: torch.Tensor, dtype: torch.dtype, *, exact: bool) -> bytes | None:
    """SHA-256 of the values as `dtype`; None where `exact` and one of them changes."""
    digest = hashlib.sha256()
    for piece in flat.resolve_conj().split(PIECE):
        piece = (
            piece.float() if piece.is_floating_point() and piece.itemsize == 1 else piece
        )  # float8 compares nowhere
        written = piece.to(dtype)
        if exact and not torch.equal(written.to(piece.dtype), piece):
            return None
        digest.update(_bytes(written.cpu().contiguous()))
    return digest.digest()


def _require_data(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        raise NotTestableError(f"{short(name)} has no data: it is on the meta device")
    return tensor.detach()


def _bytes(flat: torch.Tensor) -> memoryview:
    return flat.view(torch.uint8).numpy().data


def _write_fields(digest: "hashlib._Hash", *fields: str) -> None:
    for field in fields:
        raw = field.encode()
        digest.update(struct.pack("<Q", len(raw)) + raw)
