"""Latents with their conditioning: what is refused, kept and written."""

import pytest
import torch

from aiao_diffusers import LatentData
from aiao_diffusers.errors import DataError


def test_data_refuses_what_it_cannot_use():
    with pytest.raises(DataError, match="no samples"):
        LatentData(torch.zeros(0, 4, 8, 8), {})
    with pytest.raises(DataError, match="rows"):
        LatentData(torch.zeros(2, 4, 8, 8), {"encoder_hidden_states": torch.zeros(3, 1, 1)})
    with pytest.raises(DataError, match="no rows"):
        LatentData(torch.zeros(2, 4, 8, 8), {"class_labels": torch.tensor(3)})
    with pytest.raises(DataError, match="NaN"):
        LatentData(torch.full((2, 4, 8, 8), float("nan")), {})


class TestFile:
    def test_a_cache_is_written_whole(self, tmp_path):
        data = LatentData(torch.randn(3, 4, 2, 2), {"encoder_hidden_states": torch.randn(3, 5, 6)})
        data.save(tmp_path / "c.safetensors", torch.float32)
        assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]
        assert torch.equal(LatentData.load(tmp_path / "c.safetensors").latents, data.latents)
