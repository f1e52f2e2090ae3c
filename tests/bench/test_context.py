"""What attacks share; files are written whole or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from aiao_diffusers.bench import context
from aiao_diffusers.bench.context import write_weights
from aiao_diffusers.errors import ResultsError


def test_weights_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    module = torch.nn.Linear(2, 2)
    write_weights(module, tmp_path / "marks" / "w.safetensors")
    whole = (tmp_path / "marks" / "w.safetensors").read_bytes()

    def full(tensors, path):
        Path(path).write_bytes(b"part")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(context, "save_file", full)
    with pytest.raises(ResultsError, match="make room"):
        write_weights(module, tmp_path / "marks" / "w.safetensors")
    assert [p.name for p in (tmp_path / "marks").iterdir()] == ["w.safetensors"]
    assert (tmp_path / "marks" / "w.safetensors").read_bytes() == whole
