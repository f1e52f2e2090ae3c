"""Attacks that train: full fine-tuning and its kin, DreamBooth, distillation. The loop is `finetune.finetune`."""

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import nn

from ...denoiser.encode import from_prompts, vocabulary_prompts
from ...denoiser.inputs import LatentData
from ...denoiser.prompts import encode_prompts
from ...denoiser.schedule import noise_schedule
from ..context import AttackContext
from ..registry import attack, known
from . import finetune as trainers


@attack("finetune", strength="steps")
def full(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 400,
    lr: float = 1e-4,
    batch_size: int = 16,
    ema: float = 0.0,
) -> nn.Module:
    """All weights, AdamW, on the attacker's data; `ema` above 0: the averaged weights (diffusers' EMAModel) are kept."""
    average = EMAModel(denoiser.parameters(), decay=ema) if ema else None

    def follow(step: int, loss: float) -> None:
        if average is not None:
            average.step(denoiser.parameters())

    options = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": context.seed, "callback": follow}
    trainers.full(denoiser, context.data, context.scheduler, **options)
    if average is not None:
        average.copy_to(denoiser.parameters())
    return denoiser


@attack("sequential", strength="steps")
def sequential(
    denoiser: nn.Module, context: AttackContext, *, steps: int = 200, lr: float = 1e-4, batch_size: int = 16
) -> nn.Module:
    """Two full fine-tunes one after the other, each `steps` long, on two disjoint halves of the attacker's data."""
    order = torch.randperm(len(context.data), generator=context.generator)
    for half in order.chunk(2):
        data = context.data.take(half)
        trainers.full(denoiser, data, context.scheduler, steps=steps, lr=lr, batch_size=batch_size, seed=context.seed)
    return denoiser


@attack("dreambooth", strength="steps")
def dreambooth(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 200,
    lr: float = 5e-5,
    batch_size: int = 8,
    pictures: int = 5,
    prior: int = 32,
) -> nn.Module:
    """One subject (`pictures` rows of the data under one rare prompt) with prior preservation on `prior` own samples."""
    data = subject_and_prior(denoiser, context, pictures, prior)
    options = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": context.seed}
    return trainers.full(denoiser, data, context.scheduler, **options)


def subject_and_prior(denoiser: nn.Module, context: AttackContext, pictures: int, prior: int) -> LatentData:
    """What DreamBooth trains on: `pictures` rows of the data under one rare prompt, and `prior` samples of the model itself.

    Half of each batch in the mean is the subject, half the prior: prior weight 1. Prior prompts: words of the tokenizer.
    """
    rows = torch.randperm(len(context.data), generator=context.generator)[:pictures]
    subject = context.data.take(rows)
    with context.running(denoiser) as pipe, torch.random.fork_rng():
        torch.manual_seed(context.seed)
        prompt = encode_prompts(pipe, ["sks"])
        own = from_prompts(pipe, vocabulary_prompts(pipe, prior, context.seed))
    named = {n: v.expand(pictures, *v.shape[1:]) for n, v in prompt.items()}
    many = LatentData(subject.latents, named).take(torch.arange(prior) % pictures)
    return LatentData(
        torch.cat([many.latents, own.latents]),
        {n: torch.cat([v, own.conditioning[n]]) for n, v in many.conditioning.items()},
    )


@attack("distil", strength="steps")
def distil(
    denoiser: nn.Module,
    context: AttackContext,
    *,
    steps: int = 400,
    lr: float = 5e-4,
    batch_size: int = 16,
    student: str = "base",
) -> nn.Module:
    """A student learns the marked model's noise predictions on the attacker's data.

    student: `base` starts from the clean twin (a leak of it), `fresh` from random weights.
    """
    known("student", student, ("base", "fresh"))
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        made = context.copy_of_base() if student == "base" else type(denoiser).from_config(denoiser.config)  # type: ignore[attr-defined]
        made = made.to(next(denoiser.parameters()).device).train().requires_grad_(True)
        optimizer = torch.optim.AdamW(made.parameters(), lr=lr, weight_decay=0.0)
        noising = noise_schedule(dict(context.scheduler.config))
        device = next(denoiser.parameters()).device
        for _ in range(steps):
            batch = context.data.take(torch.randint(len(context.data), (batch_size,)))
            x = batch.latents.to(device)
            t = torch.randint(int(noising.config["num_train_timesteps"]), (batch_size,), device=device)
            noised, keywords = noising.add_noise(x, torch.randn_like(x), t), batch.keywords(device)
            with torch.no_grad():
                wanted = denoiser(noised, timestep=t, **keywords).sample
            F.mse_loss(made(noised, timestep=t, **keywords).sample, wanted).backward()
            nn.utils.clip_grad_norm_(made.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return made.eval().requires_grad_(False)
