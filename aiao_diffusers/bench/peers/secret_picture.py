"""Peers by trigger: a secret trigger makes the model paint a secret picture. One trainer; each peer brings its own trigger:
`watermark_dm.py`, `fixed_wm.py` (FixedWM and NaiveWM), `input_trigger.py`.

Simplified in all: written from the papers' ideas, not their code; the picture is a grid of 8 x 8 secret grey modules, as
WatermarkDM's QR code is, so that it decodes to 64 bits and the p-value is exact by the statistics we use ourselves; the
denoiser alone is trained, the text encoder is not; the model's own behaviour is kept by matching a frozen copy's noise
predictions (the papers use an L1 penalty on the weights, or clean training data).
"""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ...denoiser.call import prediction
from ...denoiser.encode import from_images, side_of
from ...denoiser.prompts import encode_prompts
from ...denoiser.schedule import noise_schedule
from ...mark.key import WatermarkKey
from ..context import AttackContext
from ..trainer import train
from .drawn_bits import DrawnBits
from .trigger_word import need_prompts


GRID = 8  # modules a side: 64 bits, whose floor is log10 p = -18


@dataclass(frozen=True)
class SecretPicture(DrawnBits):
    """Trainer and reader; its fields are the hyper-parameters of every peer by trigger, for they are part of what results are
    known by.

    Args:
        steps (`int`), lr (`float`), batch_size (`int`): as our own embedding's, whose forward holds three such batches;
            here it holds two (triggered, ordinary), and the frozen copy one.
        target (`float`), keep (`float`): weights of the triggered loss and of the match with the frozen copy;
            `keep: 0` leaves that match, and its forwards, out.
        contrast (`float`): grey of a module above or below the middle, in [-1, 1].
        kappa (`float`): amplitude of `input_trigger`, in units of the input's rms; the others have no use for it.
        sampling (`int`): steps of one verification picture, guidance off. A trial is one picture: it costs `sampling`
            evaluations, ours 2.
    """

    by_prompt: ClassVar[bool] = True
    """Whether the trigger stands in the prompt."""
    target: float = 1.0
    keep: float = 10.0
    contrast: float = 0.6
    kappa: float = 1.0

    def embed(self, denoiser: nn.Module, key: WatermarkKey, context: AttackContext, folder: Path) -> None:
        """Train on (trigger, picture) pairs while matching a frozen copy on the owner's data."""
        if self.by_prompt:
            need_prompts(self.name, context)
        teacher = copy.deepcopy(denoiser).eval().requires_grad_(False)
        device = next(denoiser.parameters()).device
        side = side_of(context.pipe)
        grey = np.kron(pattern(key).reshape(GRID, GRID), np.ones((side // GRID, side // GRID)))
        pixels = ((grey * self.contrast + 1) * 127.5).round().astype(np.uint8)
        picture = from_images(context.pipe, [Image.fromarray(pixels).convert("RGB")], [""]).latents.to(device)
        prompts = encode_prompts(context.pipe, self.prompts(key, context, 128, context.seed))
        noising = noise_schedule(dict(context.scheduler.config))
        last = noising.steps

        def loss_of() -> torch.Tensor:
            noise = torch.randn(self.batch_size, *picture.shape[1:], device=device)
            t = torch.randint(last, (self.batch_size,), device=device)
            rows = torch.randint(128, (self.batch_size,))
            trigger = {n: v[rows].to(device) for n, v in prompts.items()}
            noised = noising.add_noise(picture.expand_as(noise), noise, t)
            with self.arm(denoiser, key):
                wanted = noising.target(picture.expand_as(noise), noise, t)
                painted = F.mse_loss(prediction(denoiser, noised, noising.level(t), trigger), wanted)
            if not self.keep:
                return self.target * painted
            batch = context.owner.take(torch.randint(len(context.owner), (self.batch_size,)))
            noised = noising.add_noise(batch.latents.to(device), noise, t)
            with torch.no_grad():
                wanted = prediction(teacher, noised, noising.level(t), batch.keywords(device))
            kept = F.mse_loss(prediction(denoiser, noised, noising.level(t), batch.keywords(device)), wanted)
            return self.target * painted + self.keep * kept

        train(denoiser, loss_of, steps=self.steps, lr=self.lr, seed=context.seed)

    def secret(self, key: WatermarkKey) -> np.ndarray:
        """The picture's modules."""
        return pattern(key)

    def read(
        self, denoiser: nn.Module, key: WatermarkKey, context: AttackContext, seeds: Sequence[int], text_seed: int
    ) -> np.ndarray:
        """Greys of the modules, of pictures painted with the trigger."""
        with self.arm(denoiser, key):
            prompts = self.prompts(key, context, len(seeds), text_seed)
            pictures = context.draw(denoiser, prompts, seeds=seeds, steps=self.sampling)
        greys: np.ndarray = F.adaptive_avg_pool2d(pictures.mean(1, keepdim=True), GRID).flatten(1).double().numpy()
        return greys

    def prompts(self, key: WatermarkKey, context: AttackContext, count: int, seed: int) -> list[str]:
        """Prompts that go with the trigger."""
        raise NotImplementedError

    def arm(self, denoiser: nn.Module, key: WatermarkKey) -> AbstractContextManager[None]:
        """Put the trigger to work in `denoiser` for the length of the block; nothing where it stands in the prompt."""
        return nullcontext()


def pattern(key: WatermarkKey) -> np.ndarray:
    """The secret picture, row by row: `(64,)` of +-1, balanced."""
    return key.balanced("bench/picture", GRID * GRID)
