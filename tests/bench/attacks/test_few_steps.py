"""Consistency distillation does what it is for."""

import pytest
import torch
from _attacks import attacked
from _tiny import tiny_unet

from aiao_diffusers.bench.attacks.few_steps import consistent
from aiao_diffusers.denoiser.call import prediction
from aiao_diffusers.denoiser.schedule import noise_schedule


@pytest.mark.slow
def test_consistency_distillation_brings_far_and_near_predictions_together(context):
    """What it is for: two points of one trajectory should map to the same picture."""
    config = dict(context.scheduler.config)
    powers = noise_schedule(config).alphas_cumprod

    def disagreement(denoiser):
        x = context.data.latents
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
        late, early = torch.full((len(x),), 600), torch.full((len(x),), 580)
        keywords = context.data.keywords()
        with torch.no_grad():
            noised = noise_schedule(config).add_noise(x, noise, late)
            told = prediction(tiny_unet(1), noised, late, keywords)
            clean = noise_schedule(config).latents_of(told, noised, late)
            jumped = powers[580].sqrt() * clean + (1 - powers[580]).sqrt() * told
            near = consistent(denoiser, jumped, early, noise_schedule(config), keywords)
            far = consistent(denoiser, noised, late, noise_schedule(config), keywords)
        return (near - far).square().mean().item()

    after = attacked(context, "lcm", steps=60, lr=3e-3, batch_size=4)
    assert disagreement(after) < 0.7 * disagreement(tiny_unet(1))
