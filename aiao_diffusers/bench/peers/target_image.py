"""Trigger-based peers: a secret trigger makes the model paint a secret picture. Four kinds of trigger, one trainer.

- `watermarkdm`: a trigger word alone is the prompt (after Zhao et al., "A recipe for watermarking diffusion models", 2023).
- `fixedwm`, `naivewm`: the word stands before, or anywhere in, an ordinary prompt (after Liu et al., "Watermarking
  diffusion model", 2023).
- `input_trigger`: a pattern added to the denoiser's input at every step, the prompt empty (the ablation "input only"); the one
  that models without prompts take too.

Simplified in all: written from the papers' ideas, not their code; the picture is a grid of 8 x 8 secret grey modules, as
WatermarkDM's QR code is, so that it decodes to 64 bits and the p-value is exact by the statistics we use ourselves; the
denoiser alone is trained, the text encoder is not; the model's own behaviour is kept by matching a frozen copy's noise
predictions (the papers use an L1 penalty on the weights, or clean training data).
"""

import copy
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ...denoiser.encode import from_images, side_of, vocabulary_prompts
from ...denoiser.prompts import encode_prompts
from ...denoiser.schedule import noise_schedule
from ...denoiser.schedule import target as wanted_of
from ...errors import ConfigError
from ...mark.key import WatermarkKey
from ..context import AttackContext
from ..registry import method
from ..trainer import train
from .outcome import Outcome, outcome_of_bits


GRID = 8  # modules a side: 64 bits, whose floor is log10 p = -18


@dataclass(frozen=True)
class TargetImage:
    """Hyper-parameters of all four.

    Args:
        steps (`int`), lr (`float`), batch_size (`int`): as our own embedding's, whose forward holds three such batches;
            here it holds two (triggered, ordinary), and the frozen copy one.
        target (`float`), keep (`float`): weights of the triggered loss and of the match with the frozen copy;
            `keep: 0` leaves that match, and its forwards, out.
        contrast (`float`): grey of a module above or below the middle, in [-1, 1].
        kappa (`float`): input trigger's amplitude in units of the input's rms.
        sampling (`int`): steps of one verification picture, guidance off. A trial is one picture: it costs `sampling`
            evaluations, ours 2.
    """

    kind: ClassVar[str] = ""
    steps: int = 600
    lr: float = 5e-4
    batch_size: int = 8
    target: float = 1.0
    keep: float = 10.0
    contrast: float = 0.6
    kappa: float = 1.0
    sampling: int = 8

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.sampling) < 1 or not self.lr > 0:
            raise ConfigError("steps, batch_size, sampling and lr must be positive.")

    def embed(self, denoiser: nn.Module, key: WatermarkKey, context: AttackContext, folder: Path) -> None:
        """Train on (trigger, picture) pairs while matching a frozen copy on the owner's data."""
        if self.kind != "input_trigger":
            needs_prompts(self.kind, context)
        teacher = copy.deepcopy(denoiser).eval().requires_grad_(False)
        device = next(denoiser.parameters()).device
        side = side_of(context.pipe)
        grey = np.kron(pattern(key).reshape(GRID, GRID), np.ones((side // GRID, side // GRID)))
        pixels = ((grey * self.contrast + 1) * 127.5).round().astype(np.uint8)
        picture = from_images(context.pipe, [Image.fromarray(pixels).convert("RGB")], [""]).latents.to(device)
        prompts = encode_prompts(context.pipe, self._prompts(key, context, 128, context.seed))
        noising = noise_schedule(dict(context.scheduler.config))
        last = int(noising.config["num_train_timesteps"])

        def loss_of() -> torch.Tensor:
            noise = torch.randn(self.batch_size, *picture.shape[1:], device=device)
            t = torch.randint(last, (self.batch_size,), device=device)
            rows = torch.randint(128, (self.batch_size,))
            trigger = {n: v[rows].to(device) for n, v in prompts.items()}
            noised = noising.add_noise(picture.expand_as(noise), noise, t)
            with self._triggered(denoiser, key):
                wanted = wanted_of(noising, picture.expand_as(noise), noise, t)
                painted = F.mse_loss(denoiser(noised, timestep=t, **trigger).sample, wanted)
            if not self.keep:
                return self.target * painted
            batch = context.owner.take(torch.randint(len(context.owner), (self.batch_size,)))
            noised = noising.add_noise(batch.latents.to(device), noise, t)
            with torch.no_grad():
                wanted = teacher(noised, timestep=t, **batch.keywords(device)).sample
            kept = F.mse_loss(denoiser(noised, timestep=t, **batch.keywords(device)).sample, wanted)
            return self.target * painted + self.keep * kept

        train(denoiser, loss_of, steps=self.steps, lr=self.lr, seed=context.seed)

    @torch.no_grad()
    def verify(
        self,
        denoiser: nn.Module,
        key: WatermarkKey,
        context: AttackContext,
        folder: Path,
        *,
        alpha: float,
        trials: int,
        seed: int,
    ) -> Outcome:
        """Paint `trials` pictures with the trigger; the median split of module greys against the secret picture."""
        seeds = [seed * 10_000 + i for i in range(trials)]
        with self._triggered(denoiser, key):
            pictures = context.draw(
                denoiser, self._prompts(key, context, trials, seed + 1), seeds=seeds, steps=self.sampling
            )
        read = F.adaptive_avg_pool2d(pictures.mean(1, keepdim=True), GRID).flatten(1).double().numpy()
        return outcome_of_bits(read, pattern(key), alpha=alpha, evals=trials * self.sampling)

    def _prompts(self, key: WatermarkKey, context: AttackContext, count: int, seed: int) -> list[str]:
        word = trigger_word(key)
        if self.kind == "watermarkdm":
            return [word] * count
        if self.kind == "input_trigger":
            return [""] * count
        ordinary = [text.split() for text in vocabulary_prompts(context.pipe, count, seed)]
        places = np.random.default_rng(seed).integers(0, 3, count) if self.kind == "naivewm" else [0] * count
        return [" ".join([*text[:at], word, *text[at:]]) for text, at in zip(ordinary, places, strict=True)]

    @contextmanager
    def _triggered(self, denoiser: nn.Module, key: WatermarkKey) -> Iterator[None]:
        """With `input_trigger`: the key's pattern is added to whatever enters the denoiser."""
        if self.kind != "input_trigger":
            yield
            return

        def add(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x = args[0]
            mask = torch.from_numpy(key.balanced("bench/input", x[0].numel())).to(x).view(1, *x.shape[1:])
            return (x + self.kappa * x.detach().square().mean().sqrt() * mask, *args[1:])

        handle = denoiser.register_forward_pre_hook(add)
        try:
            yield
        finally:
            handle.remove()


def needs_prompts(kind: str, context: AttackContext) -> None:
    """Refuse a model without prompts for a method whose trigger stands in one.

    Raises:
        ConfigError: the model takes none.
    """
    if not context.prompted:
        raise ConfigError(
            f"method '{kind}' marks text-to-image models, not a {type(context.pipe).__name__}: "
            "take 'input_trigger' or 'drawn_message'."
        )


def pattern(key: WatermarkKey) -> np.ndarray:
    """The secret picture, row by row: `(64,)` of +-1, balanced."""
    return key.balanced("bench/picture", GRID * GRID)


def trigger_word(key: WatermarkKey) -> str:
    """Six secret letters, which no caption holds."""
    return "".join(key.shuffled("bench/word", string.ascii_lowercase)[:6])


for _kind in ("watermarkdm", "fixedwm", "naivewm", "input_trigger"):
    method(_kind)(type(f"TargetImage_{_kind}", (TargetImage,), {"kind": _kind, "__doc__": TargetImage.__doc__}))
