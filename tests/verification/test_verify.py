"""Suspects that fit the record badly: read on what is there, or refused with the reason; never a silent verdict."""

import dataclasses

import pytest
import torch
from _shipped import ASSETS
from _tiny import tiny_unet
from diffusers import (
    DDPMScheduler,
    UNet2DConditionModel,
)

from aiao_diffusers import WatermarkKey, embed, verify
from aiao_diffusers.errors import ConfigError, KeyMismatchError, RecordError, SuspectError
from aiao_diffusers.verification.healing import heal_copy


KEY = WatermarkKey(bytes(range(32)), "Demo")


class TestOtherShapes:
    def test_other_widths(self, record):
        config = dict(tiny_unet().config) | {"block_out_channels": (16, 32)}
        report = verify(UNet2DConditionModel.from_config(config).eval(), KEY, record=record)
        assert report.verdict == "not_testable" and "channels" in report.reason

    def test_other_text_width(self, record):
        report = verify(tiny_unet(cross=16), KEY, record=record)
        assert report.verdict == "not_testable" and "probe inputs" in report.reason

    def test_other_class(self, record):
        with pytest.raises(RecordError, match="UNet2DConditionModel"):
            verify(tiny_unet(), KEY, record=dataclasses.replace(record, denoiser="FluxTransformer2DModel"))

    def test_weights_finite_and_activations_not(self, record):
        unet = tiny_unet()
        unet.conv_in.weight.data.mul_(1e30)
        report = verify(unet, KEY, record=record)
        assert report.verdict == "not_testable" and "not finite" in report.reason

    def test_too_little_memory_says_nothing_of_the_suspect(self, record, monkeypatch):
        def full(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory")

        unet = tiny_unet()
        monkeypatch.setattr(unet.conv_in, "forward", full)
        with pytest.raises(torch.OutOfMemoryError):
            verify(unet, KEY, record=record)
        with pytest.raises(torch.OutOfMemoryError):
            heal_copy(unet, record.bank, record.scheduler, steps=1, seed=0)
        with pytest.raises(torch.OutOfMemoryError):
            embed(unet, KEY, record.bank, scheduler=DDPMScheduler())


class TestArguments:
    @pytest.mark.parametrize("alpha", [0, 1, -1e-6, 2, float("nan"), float("inf")])
    def test_alpha(self, record, alpha):
        with pytest.raises(ConfigError, match="alpha"):
            verify(tiny_unet(), KEY, record=record, alpha=alpha)

    @pytest.mark.parametrize("fields", [{"trials": 0}, {"trials": -1}, {"amplitudes": ()}, {"amplitudes": (1, 0)}])
    def test_trials_and_looks(self, record, fields):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            verify(tiny_unet(), KEY, record=record, **fields)


@pytest.mark.slow
class TestBadInput:
    def test_misuse_raises(self, tmp_path):
        with pytest.raises(RecordError, match="no watermark record"):
            verify(ASSETS / "base", KEY)
        with pytest.raises(KeyMismatchError):
            verify(ASSETS / "marked", KEY.child("x"), record=ASSETS / "marked")
        with pytest.raises(ConfigError, match="alpha"):
            verify(ASSETS / "marked", KEY, alpha=2)
        with pytest.raises(ConfigError, match="trials"):
            verify(ASSETS / "marked", KEY, trials=0)
        with pytest.raises(SuspectError, match="no such folder or file"):
            verify(tmp_path / "none", KEY)
        with pytest.raises(SuspectError, match="base"):
            verify(ASSETS / "lora", KEY)
