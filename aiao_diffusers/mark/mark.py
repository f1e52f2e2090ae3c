"""A key's masks and patterns on the sites it chose, as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..denoiser.sites import Site
from .key import WatermarkKey


@dataclass(frozen=True)
class Mark:
    """A key with the sites it selects on this denoiser; with `pairs` each pair of them has a mask of its own."""

    key: WatermarkKey
    ins: Sequence[Site]
    outs: Sequence[Site]
    pairs: bool = False

    def masks(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Trigger masks by in-site, `(1, C)` float32, with `pairs` a row for each out-site."""
        asked = [site.name for site in self.outs] if self.pairs else None
        return {s.name: _vector(self.key.trigger_masks(s.name, s.width_out, asked), device) for s in self.ins}

    def draw_asked(self, count: int) -> torch.Tensor | None:
        """Of a batch of so many rows, which out-site each asks, at random; None where a row asks all."""
        return torch.randint(len(self.outs), (count,)) if self.pairs else None

    def patterns(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Response patterns by out-site, `(C,)` float32."""
        return {s.name: _vector(self.key.response_pattern(s.name, s.width_in), device) for s in self.outs}


def select_rows(masks: dict[str, torch.Tensor], asked: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Of `Mark.masks` one mask for each in-site, `(C,)`, or one for each row of a batch, `(B, C)`, by whom it asks."""
    return {name: rows[0] if asked is None else rows[asked.to(rows.device)] for name, rows in masks.items()}


def _vector(values: Any, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).float().to(device)
