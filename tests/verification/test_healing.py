"""A copy is trained for a moment; the suspect stays as it is and an unmarked model unmarked."""

import copy
import sys

import pytest
import torch
from _tiny import tiny_unet
from diffusers import DDPMScheduler, UNet2DConditionModel

from aiao_diffusers import EmbedConfig, LatentData, WatermarkKey, WatermarkRecord, embed, verify
from aiao_diffusers.bench.attacks.disguise import disguise
from aiao_diffusers.denoiser.sites import trace_on
from aiao_diffusers.verification.healing import heal_copy


KEY = WatermarkKey(bytes(range(32)), "Demo")


def conditional(seed=0, **changes):
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (32, 32),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 12,
            "attention_head_dim": 8,
            "norm_num_groups": 8,
            **changes,
        }
    ).eval()


def data(rows=16, seed=1):
    random = torch.Generator().manual_seed(seed)
    latents, text = torch.randn(rows, 4, 8, 8, generator=random), torch.randn(rows, 5, 12, generator=random)
    return LatentData(latents, {"encoder_hidden_states": text})


@pytest.fixture(scope="module")
def marked():
    """A miniature teacher, the same marked, and what embedding returned."""
    unet = conditional(layers_per_block=2)
    teacher = copy.deepcopy(unet)
    fields = {"steps": 80, "lr": 2e-3, "batch_size": 4, "in_sites": 2, "out_sites": 4, "bank_size": 8}
    config = EmbedConfig(**fields, response=1.0, eps=1.0, dec=2.0, corr=2.0, anchor=0.0, max_price=None)
    report = embed(unet, KEY, data(), config, scheduler=DDPMScheduler())
    return teacher, unet, report


@pytest.fixture(scope="module")
def record():
    generator = torch.Generator().manual_seed(0)
    bank = LatentData(
        torch.randn(3, 4, 8, 8, generator=generator),
        {"encoder_hidden_states": torch.randn(3, 5, 12, generator=generator)},
    )
    layout = tuple(trace_on(tiny_unet(), bank))
    fields = {"kappa": 1.0, "response": 1.0, "scheduler": {"num_train_timesteps": 1000}, "bank": bank}
    return WatermarkRecord("Demo", KEY.commitment, "UNet2DConditionModel", len(layout), 2, 3, **fields, layout=layout)


@pytest.mark.slow
class TestHealing:
    def test_looks_of_an_unmarked_model_stay_null_and_its_weights_untouched(self, marked, monkeypatch):
        # The package's name `verify` is the function; the module is reached by its path.
        monkeypatch.setattr(sys.modules["aiao_diffusers.verification.verify"], "STEPS", 15)
        teacher, _, report = marked
        suspect = disguise(copy.deepcopy(teacher), "permute")
        state = {n: p.clone() for n, p in suspect.state_dict().items()}
        seen = verify(suspect, KEY, record=report.record, reference=report.reference, healing=data())
        assert seen.verdict == "not_verified" and seen.log10_p > -5
        labels = [look["label"].split(" x")[0] for look in seen.looks]
        assert labels[-21:] == ["aligned"] * 7 + ["healed"] * 7 + ["healed, aligned"] * 7
        assert all(torch.equal(p, state[n]) for n, p in suspect.state_dict().items())
        assert not suspect.training

    def test_copy_learns(self):
        unet = conditional()
        rows = data(4)
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
        monkeypatch.setattr(sys.modules["aiao_diffusers.verification.verify"], "STEPS", 2)
        given = True if data == "bank" else LatentData(torch.randn(2, 3, 8, 8), {})
        with torch.no_grad():
            report = verify(tiny_unet(), KEY, record=record, trials=1, amplitudes=(1.0,), healing=given)
        assert report.verdict == "not_verified"
        healed = [look["label"] for look in report.looks if look["label"].startswith("healed")]
        refused = [text for text in report.warnings if "healing looks are not available" in text]
        assert (len(healed), len(refused)) == ((3, 0) if data == "bank" else (0, 1))
