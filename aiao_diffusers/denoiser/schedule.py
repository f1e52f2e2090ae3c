"""The forward process: what noise is added at which step, what a denoiser is trained to predict there, and the time it is told.

A step is an index, `0 .. steps - 1`, whatever the schedule; `level` turns it into the scheduler's own time.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, DDPMScheduler

from ..errors import ConfigError
from ..files.text import short


MAX_SHIFT = 1e4
"""Of a flow's schedule; published ones are 1 to 17."""
_BETA_FIELDS = ("beta_end", "beta_schedule", "beta_start", "trained_betas")
_FLOWS = ("FlowMatch", "FlowMap", "Helios", "LTXEuler", "MiniMax", "Piflow")
_OTHERS = (
    "Amused",
    "Block",
    "CMStoch",
    "CosineDPM",
    "DDPMWuer",
    "Discrete",
    "EDM",
    "Entropy",
    "Karras",
    "RFD4",
    "SCM",
    "ScoreSde",
    "VQ",
)
"""Beginnings of the names of diffusers' schedulers that match flows, and of those that add noise in neither way."""


class NoiseSchedule(ABC):
    """How latents are noised, and what a denoiser says of them.

    Attributes:
        steps (`int`): number of training timesteps.
        kind (`str`): what is predicted: "epsilon", "v_prediction", "sample" or "velocity".
    """

    steps: int
    kind: str

    @abstractmethod
    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """`latents` `(B, ...)` under `noise` at `step` `(B,)`."""

    @abstractmethod
    def level(self, step: torch.Tensor) -> torch.Tensor:
        """The scheduler's own time at `step`, in its shape: what a pipeline's timesteps are made of."""

    def step_of(self, level: torch.Tensor) -> torch.Tensor:
        """The step whose `level` is the nearest, in `level`'s shape."""
        levels = self.level(torch.arange(self.steps)).to(level.device, torch.float64)
        return (level.flatten()[:, None].double() - levels).abs().argmin(1).view(level.shape)

    @abstractmethod
    def target(self, latents: torch.Tensor, noise: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """What a denoiser of this schedule is trained to predict of `latents` under `noise` at `step` `(B,)`."""

    @abstractmethod
    def noise_of(self, predicted: torch.Tensor, noised: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """The noise that a prediction of `target`'s kind stands for; `noised` `(B, ...)` is what it was made of."""

    @abstractmethod
    def amounts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors on the latents and on the noise at every step, `(steps,)` each."""

    def latents_of(self, predicted: torch.Tensor, noised: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """The clean latents that a prediction stands for; as `noise_of`."""
        signal, loud = (spread(part, noised)[step] for part in self.amounts())
        return (noised - loud * self.noise_of(predicted, noised, step)) / signal


class BetaSchedule(NoiseSchedule):
    """Betas: DDPM and all schedulers that share its forward process.

    Raises:
        ConfigError: the schedule's `prediction_type` is none of epsilon, v_prediction and sample.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        # CogVideoX's is the one whose shares of signal do not follow from the betas alone.
        maker = CogVideoXDDIMScheduler if config.get("snr_shift_scale") is not None else DDPMScheduler
        self._noising = maker.from_config({k: v for k, v in config.items() if not k.startswith("_")})
        self.steps = len(self._noising.betas)
        self.kind = str(self._noising.config["prediction_type"])

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """Share of the signal's power that is left at every step, `(steps,)`."""
        return self._noising.alphas_cumprod

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return self._noising.add_noise(latents, noise, step)

    def level(self, step: torch.Tensor) -> torch.Tensor:
        return step

    def target(self, latents: torch.Tensor, noise: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        self._check_kind()
        if self.kind == "epsilon":
            return noise
        return self._noising.get_velocity(latents, noise, step) if self.kind == "v_prediction" else latents

    def noise_of(self, predicted: torch.Tensor, noised: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        self._check_kind()
        if self.kind == "epsilon":
            return predicted
        power = self.alphas_cumprod.to(noised)[step].view(-1, *[1] * (noised.ndim - 1))
        if self.kind == "v_prediction":
            return power.sqrt() * predicted + (1 - power).sqrt() * noised
        return (noised - power.sqrt() * predicted) / (1 - power).sqrt()

    def amounts(self) -> tuple[torch.Tensor, torch.Tensor]:
        power = self.alphas_cumprod
        return power.sqrt(), (1 - power).sqrt()

    def _check_kind(self) -> None:
        if self.kind not in ("epsilon", "v_prediction", "sample"):
            raise ConfigError(
                f"prediction_type {short(self.kind)} is unknown: epsilon, v_prediction and sample are known."
            )


class FlowSchedule(NoiseSchedule):
    """Flow matching: a straight path x_s = (1 - s) x + s n from latents to noise, whose velocity n - x is predicted.

    Steps are spread over s as the scheduler's own timesteps are: evenly, or with its constant shift. A shift that depends on
    the picture's size is one of sampling and counts as none.

    Raises:
        ConfigError: a shift that is no positive number.
    """

    kind = "velocity"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.steps = int(config.get("num_train_timesteps", 1000))
        shift = config.get("shift") or config.get("flow_shift") or 1.0
        if type(shift) not in (int, float) or not 0 < shift <= MAX_SHIFT:
            raise ConfigError(f"a flow's shift is above 0 and at most {MAX_SHIFT:g}, got {short(shift)}.")
        share = torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps
        if not config.get("use_dynamic_shifting"):
            share = shift * share / (1 + (shift - 1) * share)
        self.noise_share = share.float()
        # Mochi: time runs towards the data, and so does the velocity.
        self.inverted = bool(config.get("invert_sigmas"))

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        share = self._share(step, latents)
        return (1 - share) * latents + share * noise

    def level(self, step: torch.Tensor) -> torch.Tensor:
        share = self.noise_share.to(step.device)[step]
        return (1 - share if self.inverted else share) * self.steps

    def target(self, latents: torch.Tensor, noise: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return latents - noise if self.inverted else noise - latents

    def noise_of(self, predicted: torch.Tensor, noised: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        velocity = -predicted if self.inverted else predicted
        return noised + (1 - self._share(step, noised)) * velocity

    def latents_of(self, predicted: torch.Tensor, noised: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        # Not by division, for at the last step no signal is left.
        return noised - self._share(step, noised) * (-predicted if self.inverted else predicted)

    def amounts(self) -> tuple[torch.Tensor, torch.Tensor]:
        return 1 - self.noise_share, self.noise_share

    def _share(self, step: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return spread(self.noise_share, like)[step.to(like.device)]


def spread(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`values` `(steps,)` in `like`'s dtype, where it is, shaped `(steps, 1, ...)` so that rows broadcast over `like` `(B, ...)`."""
    return values.to(like).view(-1, *[1] * (like.ndim - 1))


def config_of(scheduler: Any) -> dict[str, Any]:
    """The config of a diffusers scheduler with the name of its class, which one built in memory does not tell."""
    return {"_class_name": type(scheduler).__name__, **scheduler.config}


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config is of flow matching: by its class or, for one built in memory names none, by its fields."""
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return True
    if _is_of_other_kind(config) or any(field in config for field in _BETA_FIELDS):
        return False
    return "shift" in config or str(config.get("_class_name", "")).startswith(_FLOWS)


def has_betas(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config says by betas what noise is added."""
    named = any(field in config for field in _BETA_FIELDS)
    return named and not is_flow(config) and not _is_of_other_kind(config)


def _is_of_other_kind(config: Mapping[str, Any]) -> bool:
    return "sigma_data" in config or str(config.get("_class_name", "")).startswith(_OTHERS)


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The forward process of a scheduler's config; how it samples does not count here.

    Raises:
        ConfigError: it is of flow matching with a shift that is none, or of a kind that is neither betas nor flow matching.
    """
    if is_flow(config):
        return FlowSchedule(config)
    if _is_of_other_kind(config):
        name = short(config.get("_class_name", "scheduler"))
        raise ConfigError(f"the noise of a {name} is of no known kind: betas and flow matching are known.")
    # A config without any field of betas means diffusers' defaults, as it always did.
    return BetaSchedule(config)


def describe_kind(config: Mapping[str, Any]) -> str:
    """In words, for messages: "betas", "flow matching" or "another kind"."""
    return "flow matching" if is_flow(config) else "betas" if has_betas(config) else "another kind"


def probe_timesteps(steps: int) -> tuple[int, int]:
    """First and one past the last timestep of a trial, of a schedule of `steps`; its ends tell least: clean latents, pure noise."""
    return round(0.1 * steps), round(0.9 * steps)
