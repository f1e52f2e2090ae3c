"""A copy is trained for a moment; the suspect stays as it is and an unmarked model unmarked."""

import copy

import pytest
import torch
from _disguises import conditional, latents
from _tiny import tiny_unet
from diffusers import DDPMScheduler

from aiao_diffusers import LatentData, WatermarkKey, verify
from aiao_diffusers.bench.attacks.disguise import disguise
from aiao_diffusers.verification import plan_run
from aiao_diffusers.verification.healing import heal_copy


KEY = WatermarkKey(bytes(range(32)), "Demo")


@pytest.mark.slow
class TestHealing:
    def test_looks_of_an_unmarked_model_stay_null_and_its_weights_untouched(self, marked, monkeypatch):
        monkeypatch.setattr(plan_run, "STEPS", 15)
        teacher, _, report = marked
        suspect = disguise(copy.deepcopy(teacher), "permute")
        state = {n: p.clone() for n, p in suspect.state_dict().items()}
        seen = verify(suspect, KEY, record=report.record, reference=report.reference, healing=latents())
        assert seen.verdict == "not_verified" and seen.log10_p > -5
        labels = [look["label"].split(" x")[0] for look in seen.looks]
        assert labels[-21:] == ["aligned"] * 7 + ["healed"] * 7 + ["healed, aligned"] * 7
        assert all(torch.equal(p, state[n]) for n, p in suspect.state_dict().items())
        assert not suspect.training

    def test_copy_learns(self):
        unet = conditional()
        rows = latents(4)
        before, after = unet, heal_copy(unet, rows, DDPMScheduler(), steps=40)

        def loss(model):
            random = torch.Generator().manual_seed(3)
            noise = torch.randn(rows.latents.shape, generator=random)
            t = torch.full((4,), 500)
            noised = DDPMScheduler().add_noise(rows.latents, noise, t)
            with torch.no_grad():
                return (model(noised, t, **rows.keywords()).sample - noise).square().mean().item()

        assert loss(after) < loss(before)


class TestOtherData:
    @pytest.mark.parametrize("data", ["bank", "other channels"])
    def test_healing_inside_no_grad_and_on_data_that_does_not_fit(self, record, monkeypatch, data):
        monkeypatch.setattr(plan_run, "STEPS", 2)
        given = True if data == "bank" else LatentData(torch.randn(2, 3, 8, 8), {})
        with torch.no_grad():
            report = verify(tiny_unet(), KEY, record=record, trials=1, amplitudes=(1.0,), healing=given)
        assert report.verdict == "not_verified"
        healed = [look["label"] for look in report.looks if look["label"].startswith("healed")]
        refused = [text for text in report.warnings if "healing looks are not available" in text]
        assert (len(healed), len(refused)) == ((3, 0) if data == "bank" else (0, 1))
