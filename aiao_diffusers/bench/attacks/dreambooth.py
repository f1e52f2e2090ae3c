"""DreamBooth: a few pictures of one subject, with the model's own pictures beside them."""

import torch
from torch import nn

from ...denoiser.encode import from_prompts, vocabulary_prompts
from ...denoiser.inputs import LatentData
from ...denoiser.prompts import condition
from ..context import AttackContext
from ..registry import attack
from .finetune import full


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
    return full(denoiser, data, context.scheduler, **options)


def subject_and_prior(denoiser: nn.Module, context: AttackContext, pictures: int, prior: int) -> LatentData:
    """What DreamBooth trains on: `pictures` rows of the data under one rare prompt, and `prior` samples of the model itself.

    Half of each batch in the mean is the subject, half the prior: prior weight 1. Prior prompts: words of the tokenizer.
    """
    rows = torch.randperm(len(context.data), generator=context.generator)[:pictures]
    subject = context.data.take(rows)
    with context.running(denoiser) as pipe, torch.random.fork_rng():
        torch.manual_seed(context.seed)
        prompt, call = condition(pipe, ["sks"])
        own = from_prompts(pipe, vocabulary_prompts(pipe, prior, context.seed))
    named = {n: v.expand(pictures, *v.shape[1:]) for n, v in prompt.items()}
    many = LatentData(subject.latents, named, call).take(torch.arange(prior) % pictures)
    return LatentData(
        torch.cat([many.latents, own.latents]),
        {n: torch.cat([v, own.conditioning[n]]) for n, v in many.conditioning.items()},
        own.call,
    )
