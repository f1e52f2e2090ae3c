"""The models that adapters of `aiao bench lineage` are trained on: clean twins, carriers of three keys, and what becomes of them."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file
from torch import nn

from ...denoiser.inputs import LatentData, fitting
from ...files.strict_json import read_json
from ...formats.checkpoint import load_denoiser
from ...lineage.carrier import add_carrier
from ...mark.key import WatermarkKey
from ..attacks.finetune import full
from ..attacks.weights import matrices
from ..context import write_weights
from ..suite.marks import OWNER


FINE_TUNING = {"steps": 150, "lr": 1e-4, "batch_size": 4}


def key_of(number: int) -> WatermarkKey:
    """The key of a carrying model; public, as it marks nothing but test models."""
    return OWNER.child(f"lineage/{number}")


@dataclass
class Models:
    """The example's models of two kinds, from its folder; made ones are kept in `folder`, so that every cell meets the same.

    Args:
        assets (`Path`): the example's folder.
        folder (`Path`): of the run.
    """

    assets: Path
    folder: Path
    _held: dict[str, Any] = field(default_factory=dict, repr=False)

    def data(self, kind: str, name: str = "twemoji") -> LatentData:
        """Cached latents with what the model of this kind takes beside them."""
        return fitting(LatentData.load(self.assets / f"latents/{name}.safetensors"), self.twin(kind))

    def scheduler(self, kind: str) -> Any:
        """The noise schedule that the model was trained with."""
        config = read_json(self.assets / kind / "scheduler" / "scheduler_config.json")
        return DDPMScheduler.from_config({k: v for k, v in config.items() if not k.startswith("_")})

    def twin(self, kind: str) -> nn.Module:
        """The clean model; to be copied before it is changed."""
        if kind not in self._held:
            self._held[kind] = load_denoiser(self.assets / kind, dtype=torch.float32).requires_grad_(False)
        held: nn.Module = self._held[kind]
        return held

    def carrier(self, kind: str, number: int) -> nn.Module:
        """A copy of the clean model that carries the key of this number."""
        denoiser = copy.deepcopy(self.twin(kind))
        file = self.folder / "models" / f"{kind}-{number}.safetensors"
        if not file.is_file():
            owner = self.data(kind, "noto")
            add_carrier(denoiser, key_of(number), owner, scheduler=self.scheduler(kind))
            file.parent.mkdir(parents=True, exist_ok=True)
            write_weights(denoiser, file)
        denoiser.load_state_dict(load_file(file))
        return denoiser.eval()

    def model(self, kind: str, number: int, side: str, became: str = "whole") -> nn.Module:
        """What a cell is trained on, one of `lineage_cells.MODELS`; a copy."""
        own = self.carrier(kind, number) if side == "carrier" else copy.deepcopy(self.twin(kind))
        if became == "int8":
            return round_to_int8(own)
        if became == "fine-tuned":
            return self._fine_tuned(kind, number, side, own)
        if became.startswith("merged"):
            return merge_into(own, self.twin(kind), float(became.split()[1]))
        return own

    def _fine_tuned(self, kind: str, number: int, side: str, own: nn.Module) -> nn.Module:
        file = self.folder / "models" / f"{kind}-{number if side == 'carrier' else side}-tuned.safetensors"
        if not file.is_file():
            full(own, self.data(kind, "noto"), self.scheduler(kind), seed=number, **FINE_TUNING)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_weights(own, file)
        own.load_state_dict(load_file(file))
        return own.requires_grad_(False).eval()


@torch.no_grad()
def merge_into(own: nn.Module, other: nn.Module, weight: float) -> nn.Module:
    """`own` at `weight` and `other` for the rest, in place of `own`."""
    for mine, theirs in zip(own.parameters(), other.parameters(), strict=True):
        mine.copy_(weight * mine + (1 - weight) * theirs)
    return own


@torch.no_grad()
def round_to_int8(denoiser: nn.Module) -> nn.Module:
    """Weights of layers rounded to 8 bits with a scale an output channel, in place, and dequantised."""
    for layer in matrices(denoiser):
        step = layer.weight.abs().flatten(1).amax(1).clamp(min=1e-12).view(-1, *[1] * (layer.weight.ndim - 1)) / 127
        layer.weight.copy_((layer.weight / step).round() * step)
    return denoiser
