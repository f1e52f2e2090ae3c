"""The private file for disguised suspects: round trip and refusals."""

import copy

import pytest
import torch
from _tiny import tiny_unet
from diffusers import DDPMScheduler, UNet2DConditionModel

from aiao_diffusers import EmbedConfig, LatentData, WatermarkKey, embed, verify
from aiao_diffusers.bench.attacks.disguise import disguise
from aiao_diffusers.errors import RecordError
from aiao_diffusers.mark.record import WatermarkRecord
from aiao_diffusers.verification.reference import Reference, observe


KEY = WatermarkKey(bytes(range(32)), "Demo")


def trained(seed=0):
    """A miniature whose norms are not the identity, as after training."""
    unet = tiny_unet(seed)
    with torch.no_grad():
        for p in unet.parameters():
            p += 0.1 * torch.randn(p.shape)
    return unet


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


class TestReference:
    def test_round_trip(self, tmp_path):
        made = observe(trained(), data(), {})
        again = Reference.load(made.save(tmp_path / "r.safetensors"))
        assert again.sha256 == made.sha256 and set(again.leaving) == set(made.leaving)
        assert observe(trained(1), data(), {}).sha256 != made.sha256  # another teacher

    def test_not_a_reference(self, tmp_path):
        data().save(tmp_path / "latents.safetensors")
        with pytest.raises(RecordError, match="no alignment reference"):
            Reference.load(tmp_path / "latents.safetensors")


@pytest.mark.slow
class TestVerify:
    def test_reference_is_bound_by_the_record(self, marked):
        teacher, unet, report = marked
        assert report.record.reference_sha256 == report.reference.sha256
        suspect = disguise(copy.deepcopy(unet), "permute")
        assert verify(suspect, KEY, record=report.record, reference=teacher).verified  # the twin serves as well
        with pytest.raises(RecordError, match="another clean twin"):
            verify(suspect, KEY, record=report.record, reference=unet)
        with pytest.raises(RecordError, match="another reference"):
            verify(suspect, KEY, record=report.record, reference=observe(unet, data(), {}))

    def test_records_of_before(self, marked, tmp_path):
        teacher, unet, report = marked
        report.record.save(tmp_path)
        path = tmp_path / "aiao" / "watermark.json"
        path.write_text(
            "".join(line for line in path.open() if "teacher_sha" not in line and "reference_sha" not in line)
        )
        old = WatermarkRecord.load(tmp_path)
        assert old.teacher_sha256 is None and verify(unet, KEY, record=old).verified
        seen = verify(disguise(copy.deepcopy(unet), "permute"), KEY, record=old, reference=report.reference)
        assert seen.verified and any("names no reference" in text for text in seen.warnings)
