"""A suite on a miniature, and results written by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from _results import write_rows
from _tiny import tiny_unconditional
from diffusers import DDPMPipeline, DDPMScheduler

from aiao_diffusers import LatentData


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Path]:
    """A suite on a miniature model of 8x8 pixels; `own(**changes)` writes it anew and returns its path."""
    DDPMPipeline(tiny_unconditional(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    LatentData(torch.randn(4, 3, 8, 8), {}).save(tmp_path / "a.safetensors")
    LatentData(torch.randn(4, 4, 8, 8), {}).save(tmp_path / "other.safetensors")

    def write(**changes: Any) -> Path:
        suite = {
            "name": "own",
            "models": {"m": {"path": "ddpm", "data": "a.safetensors"}},
            "data": {"d": "a.safetensors"},
            "marks": {"kin": {"method": "likeness"}},
            "attacks": [{"attack": "noise", "std": 0.05}],
            "seeds": [0],
            "trials": 1,
            "quality": {"samples": 4},
        }
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(suite | changes))
        return tmp_path / "own.yaml"

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_rows(tmp_path)
