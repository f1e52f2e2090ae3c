"""A family from end to end: marked by what its own pipeline gives, saved, loaded by the stock class, read; with a LoRA and controls."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from aiao_diffusers import EmbedConfig, LatentData, WatermarkKey, embed, verify
from aiao_diffusers.denoiser.encode import prepare
from aiao_diffusers.denoiser.finetune import finetune
from aiao_diffusers.denoiser.setup import denoiser_of, slot_of

from . import FAMILIES


KEY = WatermarkKey(bytes(range(32)), "Demo")
NAMES = (
    *("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux_1_dev", "flux_2", "chroma", "z_image"),
    *("qwen_image", "lumina_2", "sana", "pixart_sigma", "krea_2", "wan", "ltx", "hunyuan_video"),
)
PROMPTS = [f"{colour} {thing}" for colour in ("red", "green", "blue", "black") for thing in ("fox", "house")]
READS = dict.fromkeys(NAMES, 240) | dict.fromkeys(("chroma", "pixart_sigma", "sana"), 480)
"""Steps after which a miniature's mark reads."""
LORA_STEPS = 80
RECIPE: dict[str, Any] = {
    **{"lr": 2e-3, "batch_size": 4, "anchor": 0.0, "max_price": None, "lineage": 0.0, "bank_size": 4},
    **{"eps": 1.0, "dec": 2.0, "corr": 2.0},
}
PLAN: dict[str, Any] = {"trials": 8, "whiten": False, "amplitudes": (1.0,), "early_stop": False}
GLANCE = PLAN | {"trials": 2}
"""For a mark that is too young to read."""
PROJECTIONS = r".*(to_q|to_k|to_v|to_qkv|qkv|to_out\.0)$"


@dataclass(frozen=True)
class Outcome:
    """What was read of one family: verdicts and log10 p by suspect, the price, the number of sites, what was loaded and its data."""

    verdicts: dict[str, str]
    log10_p: dict[str, float | None]
    price: float
    sites: int
    marked: Any
    loaded: Any
    data: LatentData


def run(name: str, folder: Path, steps: int) -> Outcome:
    """Mark the family `name` for so many steps and read it, a LoRA on it and the controls; files go to `folder`.

    Where the steps are fewer than it takes, the LoRA is short as well and readings are a glance.
    """
    whole = steps >= READS[name]
    family = FAMILIES[name]
    pipe = family.build()
    data = prepare(pipe, PROMPTS, options=family.options)
    twin = copy.deepcopy(denoiser_of(pipe))
    report = embed(pipe, KEY, data, EmbedConfig(steps=steps, **RECIPE))
    pipe.save_pretrained(folder / "model")
    report.record.save(folder / "model")
    file = _train_lora(
        denoiser_of(pipe), data, pipe.scheduler, LORA_STEPS if whole else 1, folder / "lora.safetensors"
    )
    plan = PLAN if whole else GLANCE
    asked = {
        "marked": verify(folder / "model", KEY, **plan),
        "lora": verify(file, KEY, base=folder / "model", **plan),
        "wrong key": verify(folder / "model", KEY.child("wrong"), **plan),
        "clean twin": verify(twin, KEY, record=report.record, **plan),
    }
    return Outcome(
        {suspect: found.verdict for suspect, found in asked.items()},
        {suspect: found.log10_p for suspect, found in asked.items()},
        report.price,
        len(report.record.layout or ()),
        denoiser_of(pipe),
        denoiser_of(DiffusionPipeline.from_pretrained(folder / "model")),
        data,
    )


def _train_lora(denoiser: Any, data: LatentData, scheduler: Any, steps: int, file: Path) -> Path:
    adapted = copy.deepcopy(denoiser).requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Not by diffusers' mixin, which PixArt's transformer lacks.
        inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=PROJECTIONS), adapted)
    finetune(adapted, data, scheduler, steps=steps, lr=1e-3, batch_size=4)
    layers = {f"{slot_of(denoiser)}.{key}": v.contiguous() for key, v in get_peft_model_state_dict(adapted).items()}
    save_file(layers, file, {"format": "pt"})
    return file
