"""A folder of miniature models as `aiao bench lineage` wants its example, and cells that train in a moment."""

from pathlib import Path

import torch
from _carried import text_unet
from diffusers import DDPMScheduler, UNet2DModel

from aiao_diffusers import LatentData
from aiao_diffusers.bench.audits import lineage_models, lineage_training
from aiao_diffusers.bench.audits.lineage_cells import LoraCell


CELL = LoraCell(rank=4, alpha=4, lr=5e-3, steps=40, batch=4, targets="all linear", pictures=16)
SHORT = LoraCell(rank=2, alpha=2, lr=1e-3, steps=2, batch=2, pictures=4)


def example(folder: Path) -> Path:
    """`base` and `unconditional` with their schedules, and latents of owner and attacker: 24 pictures each."""
    torch.manual_seed(0)
    unconditional = UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    for kind, denoiser in (("base", text_unet()), ("unconditional", unconditional)):
        denoiser.save_pretrained(folder / kind)
        DDPMScheduler().save_pretrained(folder / kind / "scheduler")
    (folder / "latents").mkdir()
    for seed, name in enumerate(("noto", "twemoji")):
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(24, 5, 16, generator=generator)
        latents = LatentData(torch.randn(24, 4, 8, 8, generator=generator), {"encoder_hidden_states": text})
        latents.save(folder / "latents" / f"{name}.safetensors", torch.float32)
    return folder


def shorten(monkeypatch) -> None:
    """Few held-out pictures and short fine-tunes."""
    monkeypatch.setattr(lineage_training, "HELD_OUT", 8)
    monkeypatch.setitem(lineage_models.FINE_TUNING, "steps", 2)


def quiet(done: int, total: int, line: str) -> None:
    """Progress that nobody sees."""
