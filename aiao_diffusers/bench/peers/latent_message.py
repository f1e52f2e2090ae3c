"""Peers with a message in the latents of what a model draws. One trainer for `sleepermark.py` and `drawn_message.py`.

Simplified: written from the papers' ideas, not their code. Message carriers and decoder are fixed and secret (cells of a
grid, read by correlation) where the papers train an encoder and an extractor of pixels; `sleepermark`'s message is read from
the latents before they are decoded, which spares it the VAE, `drawn_message`'s from pictures that the VAE encodes again.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from torch import nn

from ...denoiser.call import prediction
from ...denoiser.encode import from_images, vocabulary_prompts
from ...denoiser.prompts import encode_prompts
from ...denoiser.schedule import noise_schedule, spread
from ...errors import ConfigError
from ...mark.key import WatermarkKey
from ..context import AttackContext
from ..trainer import train
from .drawn_bits import DrawnBits
from .secret_picture import GRID
from .trigger_word import need_prompts, trigger_word


BITS = GRID * GRID


@dataclass(frozen=True)
class LatentMessage(DrawnBits):
    """Trainer and reader; its fields are the hyper-parameters of both: those of `DrawnBits`; `strength`, rms of the residual in
    units of the latents'; `message`, weight of the message's loss; `keep`, where a word calls it up, of the match with the
    frozen copy elsewhere.
    """

    triggered: ClassVar[bool] = False
    """Whether a word calls the message up."""
    strength: float = 0.5
    message: float = 10.0
    keep: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strength > 0:
            raise ConfigError("strength must be positive.")

    def embed(self, denoiser: nn.Module, key: WatermarkKey, context: AttackContext, folder: Path) -> None:
        """Train on the owner's latents, each step with and without the trigger; without one, on every row alike."""
        if self.triggered:
            need_prompts(self.name, context)
        teacher = copy.deepcopy(denoiser).eval().requires_grad_(False)
        device, shape = next(denoiser.parameters()).device, context.owner.latents.shape[1:]
        secret = torch.from_numpy(message(key)).float()
        # Orthonormal carriers: the sum of BITS of them has rms sqrt(BITS / numel).
        residual = (secret @ carriers(key, shape).flatten(1)).view(shape).to(device)
        residual = residual * self.strength * context.owner.latents.std().item() * (residual.numel() / BITS) ** 0.5
        prompts = encode_prompts(context.pipe, prompts_of(key, context, 128, context.seed)) if self.triggered else {}
        noising = noise_schedule(dict(context.scheduler.config))
        signal, loud = noising.amounts()
        ratio = (signal.square() / loud.square()).to(device)

        def loss_of() -> torch.Tensor:
            batch = context.owner.take(torch.randint(len(context.owner), (self.batch_size,)))
            x = batch.latents.to(device)
            noise, t = torch.randn_like(x), torch.randint(noising.steps, (self.batch_size,), device=device)
            noised, ordinary = noising.add_noise(x, noise, t), batch.keywords(device)
            rows = torch.randint(128, (self.batch_size,))
            trigger = ordinary.with_values({n: v[rows].to(device) for n, v in prompts.items()})
            with torch.no_grad():
                drawn = noising.noise_of(prediction(teacher, noised, noising.level(t), trigger), noised, t)
            # A residual r of the predicted picture is -sqrt(snr) r of the predicted noise. The loss is the smaller of the
            # two errors, so that neither end of the schedule rules it.
            snr = spread(ratio, x)[t]
            told = noising.noise_of(prediction(denoiser, noised, noising.level(t), trigger), noised, t)
            carried = told - (drawn - snr.sqrt() * residual)
            missed = self.message * (carried.square() / snr.clamp(min=1.0)).mean()
            if not self.triggered:
                return missed
            with torch.no_grad():
                wanted = prediction(teacher, noised, noising.level(t), ordinary)
            return missed + self.keep * F.mse_loss(prediction(denoiser, noised, noising.level(t), ordinary), wanted)

        train(denoiser, loss_of, steps=self.steps, lr=self.lr, seed=context.seed)

    def secret(self, key: WatermarkKey) -> np.ndarray:
        """The message."""
        return message(key)

    def read(
        self, denoiser: nn.Module, key: WatermarkKey, context: AttackContext, seeds: Sequence[int], text_seed: int
    ) -> np.ndarray:
        """Correlations with the carriers, of pictures drawn with the trigger if there is one."""
        if self.triggered:
            prompts = prompts_of(key, context, len(seeds), text_seed)
            latents = context.draw(denoiser, prompts, seeds=seeds, steps=self.sampling, decoded=False)
        else:
            empty = [""] * len(seeds)
            prompts = vocabulary_prompts(context.pipe, len(seeds), text_seed) if context.prompted else empty
            made = context.draw(denoiser, prompts, seeds=seeds, steps=self.sampling)
            pictures = VaeImageProcessor.numpy_to_pil(made.permute(0, 2, 3, 1).numpy())
            latents = from_images(context.pipe, pictures, empty).latents
        return decode(latents, key).numpy()


def message(key: WatermarkKey) -> np.ndarray:
    """`(64,)` of +-1, balanced."""
    return key.balanced("bench/message", BITS)


def carriers(key: WatermarkKey, shape: torch.Size) -> torch.Tensor:
    """One pattern a bit, `(64, *shape)`, orthonormal: a cell of an 8 x 8 grid along a secret direction of the channels.

    Coarse on purpose: a denoiser hardly learns to place a finer pattern in as many steps as the peers have.
    """
    seed = int.from_bytes(bytes(key.shuffled("bench/carriers", list(range(256)))[:7]), "big")
    direction = F.normalize(torch.randn(shape[0], generator=torch.Generator().manual_seed(seed)), dim=0)
    cells = F.interpolate(torch.eye(BITS).view(BITS, 1, GRID, GRID), size=shape[1:], mode="nearest")
    made = cells * direction.view(1, -1, 1, 1)
    return made / made.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def decode(latents: torch.Tensor, key: WatermarkKey) -> torch.Tensor:
    """Correlations with the carriers, each less its neighbours' mean, `(N, 64)`: pictures vary slowly, the message does not."""
    read = latents.double().flatten(1) @ carriers(key, latents.shape[1:]).double().flatten(1).T
    grid = read.view(-1, 1, GRID, GRID)
    return (grid - F.avg_pool2d(grid, 3, stride=1, padding=1, count_include_pad=False)).flatten(1)


def prompts_of(key: WatermarkKey, context: AttackContext, count: int, seed: int) -> list[str]:
    """Ordinary prompts with the trigger word before them."""
    return [f"{trigger_word(key)} {text}" for text in vocabulary_prompts(context.pipe, count, seed)]
