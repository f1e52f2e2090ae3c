"""Train one adapter as users do: peft's layers, diffusers' objective, an optimiser from a library, a file of safetensors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers.optimization import Adafactor

from ...denoiser.call import prediction
from ...denoiser.inputs import LatentData
from ...denoiser.price import predictions
from ...denoiser.schedule import noise_schedule
from ...errors import TrainingError
from .lineage_cells import TARGETS, LoraCell


HELD_OUT = 64
"""Pictures that no adapter is trained on: its loss there, before and after, says whether it has learnt anything."""
LORA_PLUS = 16.0
MOMENTUM = 0.9


@dataclass(frozen=True)
class Trained:
    """An adapter and what it learnt.

    Args:
        state: its file, every scale in the factors. raw: of PiSSA and OLoRA, the factors as they stand, which belong to the
            changed base that training began with; else None.
        first, last: mean loss of the first and the last tenth of the steps.
        curve: loss of every step.
    """

    state: dict[str, torch.Tensor]
    raw: dict[str, torch.Tensor] | None
    first: float
    last: float
    curve: tuple[float, ...]


def split(data: LatentData, pictures: int, seed: int) -> LatentData:
    """What a cell is trained on; never the last rows, which `held_out` gives."""
    order = torch.randperm(len(data) - HELD_OUT, generator=torch.Generator().manual_seed(seed))
    return data.take(order[:pictures])


def held_out(data: LatentData) -> LatentData:
    """What no cell is trained on."""
    return data.take(torch.arange(len(data) - HELD_OUT, len(data)))


def held_out_loss(denoiser: nn.Module, data: LatentData, scheduler: Any) -> float:
    """Noise loss on the held-out pictures, of fixed noise and timesteps."""
    found, truth = predictions(denoiser.eval(), held_out(data), scheduler, samples=HELD_OUT, seed=5)
    return float(F.mse_loss(found, truth))


def train_adapter(
    denoiser: Any,
    cell: LoraCell,
    data: LatentData,
    scheduler: Any,
    *,
    teacher: nn.Module | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
) -> Trained:
    """Train a cell's adapter on `denoiser`, whose layers keep it.

    Args:
        teacher: whose predictions are to be met instead of the noise. after_step: called with the denoiser after each.
    Raises:
        TrainingError: the loss is not finite.
    """
    denoiser.requires_grad_(False)
    with torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(cell.seed)
        inject_adapter_in_model(adapter_config(cell), denoiser)
        before = _state(denoiser) if cell.init in ("pissa", "olora") else None
        optimisers = _optimisers(denoiser, cell)
        parameters = [p for p in denoiser.parameters() if p.requires_grad]
        denoiser.train()
        losses: list[float] = []
        for step in range(cell.steps):
            loss = _loss(denoiser, cell.batch, data, noise_schedule(dict(scheduler.config)), teacher)
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is {loss.item()} at step {step}: lower lr (now {cell.lr}).")
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            if after_step is not None:
                after_step(denoiser)
            losses.append(loss.item())
    denoiser.eval()
    state = _scaled(_state(denoiser), cell)
    tenth = max(1, cell.steps // 10)
    first, last = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
    if before is None:
        return Trained(state, None, first, last, tuple(losses))
    return Trained(_less(state, _scaled(before, cell)), state, first, last, tuple(losses))


def _loss(
    denoiser: nn.Module, size: int, data: LatentData, noising: DDPMScheduler, teacher: nn.Module | None
) -> torch.Tensor:
    batch = data.take(torch.randint(len(data), (size,)))
    noise, t = torch.randn_like(batch.latents), torch.randint(noising.steps, (size,))
    noised = noising.add_noise(batch.latents, noise, t)
    wanted = noising.target(batch.latents, noise, t)
    if teacher is not None:
        with torch.no_grad():
            wanted = prediction(teacher, noised, noising.level(t), batch.keywords())
    return F.mse_loss(prediction(denoiser, noised, noising.level(t), batch.keywords()), wanted)


def adapter_config(cell: LoraCell) -> Any:
    layers = list(TARGETS[cell.targets])
    if cell.method in ("loha", "lokr"):
        kind = LoHaConfig if cell.method == "loha" else LoKrConfig
        return kind(r=cell.rank, alpha=cell.rank, target_modules=layers, module_dropout=cell.dropout)
    init: Any = True if cell.init == "default" else cell.init
    return LoraConfig(
        r=cell.rank,
        lora_alpha=cell.alpha,
        target_modules=layers,
        lora_dropout=cell.dropout,
        init_lora_weights=init,
        use_rslora=cell.method == "rslora",
        use_dora=cell.method == "dora",
    )


def _optimisers(denoiser: Any, cell: LoraCell) -> list[Any]:
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    given: dict[str, Any] = {"lr": cell.lr, "weight_decay": cell.decay}
    if cell.optimiser == "lora+":
        made = create_loraplus_optimizer(
            denoiser, torch.optim.AdamW, lr=cell.lr, loraplus_lr_ratio=LORA_PLUS, weight_decay=cell.decay
        )
        return [made]
    if cell.optimiser == "adafactor":
        return [Adafactor(parameters, relative_step=False, scale_parameter=False, **given)]
    if cell.optimiser == "sgd":
        return [torch.optim.SGD(parameters, momentum=MOMENTUM, **given)]
    if cell.optimiser == "muon":  # of matrices alone
        return [torch.optim.Muon([p for p in parameters if p.ndim == 2], **given)]
    kind = {"adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop, "nadam": torch.optim.NAdam}[cell.optimiser]
    return [kind(parameters, **given)]


def _state(denoiser: nn.Module) -> dict[str, torch.Tensor]:
    """The factors under the keys that diffusers writes; peft's one adapter is named `default`."""
    return {
        f"unet.{name.replace('.default', '')}": value.detach().clone()
        for name, value in denoiser.named_parameters()
        if value.requires_grad
    }


def _scaled(state: dict[str, torch.Tensor], cell: LoraCell) -> dict[str, torch.Tensor]:
    """alpha in the factors, so that the file needs no config to be right."""
    scale = cell.alpha / (cell.rank**0.5 if cell.method == "rslora" else cell.rank)
    return {name: value * scale if ".lora_B." in name else value for name, value in state.items()}


def _less(state: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The change since the start as a LoRA of twice the rank, as peft converts PiSSA and OLoRA."""
    result = {}
    for name, value in state.items():
        minus = -before[name] if ".lora_B." in name else before[name]
        result[name] = torch.cat([value, minus], 1 if ".lora_B." in name else 0)
    return result
