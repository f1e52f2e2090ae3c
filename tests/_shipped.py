"""The example models that the repository ships, and the public demo key that they are marked with."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from aiao_diffusers import WatermarkKey


ASSETS = Path(__file__).parents[1] / "examples" / "emoji_diffusion"
BASE = ASSETS / "base"
TOKENIZER = BASE / "tokenizer"
DEMO = WatermarkKey(bytes(range(32)), "Demo")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def spoil(folder: Path) -> Path:
    """A copy of the base in `folder` with one infinite weight."""
    shutil.copytree(BASE, folder)
    weights = load_file(folder / WEIGHTS)
    weights["conv_in.weight"][0, 0, 0, 0] = torch.inf
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder
