"""The forward process: what noise is added at which step, and what a denoiser is trained to predict there."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler

from ..errors import ConfigError


def target(noising: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """What a denoiser of this schedule is trained to predict of `latents` under `noise` at `timestep` `(B,)`.

    Raises:
        ConfigError: the schedule's `prediction_type` is none of epsilon, v_prediction and sample.
    """
    kind = _prediction_type(noising)
    if kind == "epsilon":
        return noise
    return noising.get_velocity(latents, noise, timestep) if kind == "v_prediction" else latents


def noise_of(
    noising: DDPMScheduler, predicted: torch.Tensor, noised: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """The noise that a prediction of `target`'s kind stands for; `noised` `(B, ...)` is what it was made of, `timestep` `(B,)`.

    Raises:
        ConfigError: as for `target`.
    """
    kind = _prediction_type(noising)
    if kind == "epsilon":
        return predicted
    power = noising.alphas_cumprod.to(noised)[timestep].view(-1, *[1] * (noised.ndim - 1))
    if kind == "v_prediction":
        return power.sqrt() * predicted + (1 - power).sqrt() * noised
    return (noised - power.sqrt() * predicted) / (1 - power).sqrt()


def _prediction_type(noising: DDPMScheduler) -> str:
    kind = str(noising.config["prediction_type"])
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise ConfigError(f"prediction_type {kind!r} is unknown: epsilon, v_prediction and sample are known.")
    return kind


def probe_timesteps(steps: int) -> tuple[int, int]:
    """First and one past the last timestep of a trial, of a schedule of `steps`; its ends tell least: clean latents, pure noise."""
    return round(0.1 * steps), round(0.9 * steps)


def has_betas(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config says by betas what noise is added; those of flow matching do not."""
    return any(field in config for field in ("beta_end", "beta_schedule", "beta_start", "trained_betas"))


def noise_schedule(config: dict[str, Any]) -> DDPMScheduler:
    """The forward process of a scheduler's config; only its betas count here."""
    return DDPMScheduler.from_config({k: v for k, v in config.items() if not k.startswith("_")})
