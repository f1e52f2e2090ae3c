"""What a change of the denoiser costs: noise predictions before and after, on the same noised latents."""

import math
from typing import Any

import torch
from torch import nn

from .call import prediction
from .inputs import LatentData
from .schedule import noise_schedule
from .setup import placement


ROWS = 4  # a forward: measuring the price must not need more memory than the training did


@torch.no_grad()
def predictions(
    denoiser: nn.Module, data: LatentData, scheduler: Any, *, samples: int = 256, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and what they should have been (the schedule's `target`), `(samples, ...)` float32 on the CPU; the draws depend on `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    noising = noise_schedule(dict(scheduler.config))
    (device, dtype), predicted, truth = placement(denoiser), [], []
    for start in range(0, samples, 32):
        size = min(32, samples - start)
        batch = data.take(torch.randint(len(data), (size,), generator=generator))
        x = batch.latents
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(noising.steps, (size,), generator=generator)
        noised = noising.add_noise(x, noise, t).to(device, dtype)
        for rows in torch.arange(size).split(ROWS):
            keywords = batch.take(rows).keywords(device, dtype)
            level = noising.level(t[rows]).to(device)
            predicted.append(prediction(denoiser, noised[rows], level, keywords).float().cpu())
        truth.append(noising.target(x, noise, t))
    return torch.cat(predicted), torch.cat(truth)


def compare_predictions(clean: torch.Tensor, marked: torch.Tensor, noise: torch.Tensor) -> dict[str, float]:
    """Distance of two sets of noise predictions on the same noised latents.

    Args:
        clean (`torch.Tensor`): the clean twin's, `(N, ...)`.
        marked (`torch.Tensor`): the marked model's, of that shape.
        noise (`torch.Tensor`): what they should have been, of that shape.
    Returns:
        `dict[str, float]`: `mse`: mean |eps_marked - eps_clean|^2; `loss`: the clean twin's noise loss; `loss_marked`;
        `ratio`, the price: mse / loss; `ratio_ci`: half-width of its 95% interval by the delta method; `samples`.
    """
    axes = tuple(range(1, noise.ndim))
    pairs = ((clean, marked), (clean, noise), (marked, noise))
    table = torch.stack([(a - b).square().mean(axes) for a, b in pairs]).double()
    mse, loss, loss_marked = table.mean(1).tolist()
    ratio = mse / loss
    spread = (table[0] - ratio * table[1]).std().item() / loss / math.sqrt(table.shape[1])
    return {
        "mse": mse,
        "loss": loss,
        "loss_marked": loss_marked,
        "ratio": ratio,
        "ratio_ci": 1.96 * spread,
        "samples": float(table.shape[1]),
    }


def measure_price(
    clean_twin: nn.Module, marked: nn.Module, data: LatentData, scheduler: Any, *, samples: int = 256, seed: int = 0
) -> dict[str, float]:
    """What a marked denoiser costs against its clean twin: `compare_predictions` on the same noised latents.

    Args:
        clean_twin (`nn.Module`): the denoiser before.
        marked (`nn.Module`): the denoiser after.
        data (`LatentData`): clean latents with conditioning.
        scheduler: the noise schedule, a diffusers scheduler.
        samples (`int`, defaults to 256): noised latents.
        seed (`int`, defaults to 0): of rows, noise and timesteps.
    Returns:
        `dict[str, float]`: as of `compare_predictions`.
    """
    before, noise = predictions(clean_twin, data, scheduler, samples=samples, seed=seed)
    return compare_predictions(before, predictions(marked, data, scheduler, samples=samples, seed=seed)[0], noise)
