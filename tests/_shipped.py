"""The example models that the repository ships, and the public demo key that they are marked with."""

from pathlib import Path

from aiao_diffusers import WatermarkKey


ASSETS = Path(__file__).parents[1] / "examples" / "emoji_diffusion"
BASE = ASSETS / "base"
TOKENIZER = BASE / "tokenizer"
DEMO = WatermarkKey(bytes(range(32)), "Demo")
