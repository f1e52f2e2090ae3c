"""What a denoiser is trained to predict, by every kind of schedule."""

import pytest
import torch
from diffusers import DDPMScheduler

from aiao_diffusers.denoiser.schedule import noise_of, target
from aiao_diffusers.errors import ConfigError


class TestTarget:
    def test_is_what_the_schedule_says(self):
        latents, noise, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([10, 900])
        schedules = {kind: DDPMScheduler(prediction_type=kind) for kind in ("epsilon", "v_prediction", "sample")}
        wanted = {kind: target(schedule, latents, noise, t) for kind, schedule in schedules.items()}
        assert torch.equal(wanted["epsilon"], noise) and torch.equal(wanted["sample"], latents)
        # v = sqrt(a) noise - sqrt(1 - a) latents
        a = schedules["epsilon"].alphas_cumprod[t].view(2, 1, 1, 1)
        assert torch.allclose(wanted["v_prediction"], a.sqrt() * noise - (1 - a).sqrt() * latents)
        with pytest.raises(ConfigError, match="prediction_type 'flow'"):
            target(DDPMScheduler(prediction_type="flow"), latents, noise, t)

    def test_its_noise_is_found_again(self):
        latents, noise, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([10, 900])
        for kind in ("epsilon", "v_prediction", "sample"):
            noising = DDPMScheduler(prediction_type=kind)
            noised = noising.add_noise(latents, noise, t)
            found = noise_of(noising, target(noising, latents, noise, t), noised, t)
            assert torch.allclose(found, noise, atol=1e-3)
        with pytest.raises(ConfigError, match="prediction_type 'flow'"):
            noise_of(DDPMScheduler(prediction_type="flow"), latents, noise, t)
