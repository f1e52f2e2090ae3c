"""What reading an adapter's lineage costs: milliseconds, memory, and how many an hour, against the two forwards of a base."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from ...denoiser.inputs import LatentData
from ...denoiser.price import predictions
from ...files.peak import Peak
from ...lineage.reading import read_lineage
from .flops import SD15, random_bank, random_model
from .lineage_cells import TARGETS
from .lineage_models import Models, key_of


RANK = 16
REPEATS, FEW = 20, 3
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""Of Stable Diffusion XL's U-Net, 2.6 billion parameters; only its shapes are needed."""


def blank_unet(config: Mapping[str, Any]) -> Any:
    """On the meta device."""
    with init_empty_weights():
        return UNet2DConditionModel(**config)


def random_adapter(denoiser: nn.Module, targets: str, file: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Gaussian factors of rank 16 for the targeted layers."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for name, module in denoiser.named_modules():
        if name.endswith(tuple(f".{part}" for part in TARGETS[targets])):
            out, inner, *kernel = module.weight.shape
            down = torch.randn(RANK, inner, *kernel, generator=generator)
            up = torch.randn(out, RANK, *[1] * len(kernel), generator=generator)
            state |= {f"unet.{name}.lora_A.weight": down.to(dtype), f"unet.{name}.lora_B.weight": up.to(dtype)}
    save_file(state, file)
    return file


def measure_reading(name: str, file: Path, blank: nn.Module, repeats: int = REPEATS) -> dict[str, Any]:
    """Seconds a reading, the mean after a first one, and what it takes beyond the memory that was held before."""
    peak = Peak()
    with peak.measured():
        found = read_lineage(file, key_of(0), blank)
    begun = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        read_lineage(file, key_of(0), blank)
    wall, core = _each(begun, repeats)
    told = {"file": name, "file_mib": file.stat().st_size / 2**20, "sites": len(found.sites)}
    return told | {"seconds": wall, "core_seconds": core, "peak_mib": peak.mib}


def measure_forwards(name: str, denoiser: nn.Module, data: LatentData, scheduler: Any, repeats: int) -> dict[str, Any]:
    """Two forwards as one trial of the sub-path mark takes them, in one batch, without opening or placing an adapter."""
    peak = Peak()
    with peak.measured():
        predictions(denoiser, data, scheduler, samples=2)
    begun = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        predictions(denoiser, data, scheduler, samples=2)
    wall, core = _each(begun, repeats)
    told = {"file": f"two forwards, {name}", "file_mib": None, "sites": None}
    return told | {"seconds": wall, "core_seconds": core, "peak_mib": peak.mib}


def _each(begun: tuple[float, float], repeats: int) -> tuple[float, float]:
    """Seconds on the wall and of the processor since `begun`, of one of `repeats`."""
    return (time.perf_counter() - begun[0]) / repeats, (time.process_time() - begun[1]) / repeats


def measure_rate(file: Path, blank: nn.Module, count: int) -> dict[str, Any]:
    """`count` readings one after the other, each under a key of its own."""
    begun = time.perf_counter(), time.process_time()
    for number in range(count):
        read_lineage(file, key_of(number), blank)
    wall, core = _each(begun, 1)
    return {"readings": count, "seconds": wall, "core_seconds": core, "an_hour": 3600 * count / core}


def measure_cost(
    models: Models, kept: Path, scratch: Path, *, count: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Everything, in one process.

    Args:
        kept: an adapter of the example's base. count: readings of the rate.
    """
    base, scheduler = models.twin("base"), models.scheduler("base")
    rows = [measure_reading("the example, as trained", kept, base, REPEATS)]
    rows.append(measure_forwards("the example", base, models.data("base"), scheduler, REPEATS))
    progress(rows[-1]["file"])
    for name, config in (("Stable Diffusion 1.5", SD15), ("SDXL", SDXL)):
        blank = blank_unet(config)
        for targets in ("attention", "all linear"):
            file = random_adapter(blank, targets, scratch / "adapter.safetensors")
            rows.append(measure_reading(f"{name}'s shapes, rank {RANK}, {targets}", file, blank, FEW))
            progress(rows[-1]["file"])
    large = random_model(UNet2DConditionModel, SD15, torch.float32)
    rows.append(measure_forwards("Stable Diffusion 1.5's shapes", large, random_bank(large, 64), scheduler, 1))
    progress(rows[-1]["file"])
    return {"rows": rows, "rate": measure_rate(kept, base, count)}
