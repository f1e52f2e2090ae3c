"""The suspect's own noise schedule comes before the record's."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from _tiny import tiny_unet
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from aiao_diffusers import WatermarkKey, verify
from aiao_diffusers.verification.own_schedule import find_schedule, with_own_schedule


KEY = WatermarkKey(bytes(range(32)), "Demo")
FEW = {"trials": 2, "amplitudes": (1.0,), "whiten": False}


def pipeline(unet, scheduler):
    return SimpleNamespace(unet=unet, scheduler=scheduler)


class TestFind:
    def test_of_a_pipeline_and_of_its_folder(self, tmp_path):
        scheduler = DDIMScheduler(beta_end=0.012)
        assert find_schedule(pipeline(None, scheduler))["beta_end"] == 0.012
        assert find_schedule(tmp_path) is None and find_schedule(tiny_unet()) is None
        scheduler.save_pretrained(tmp_path / "scheduler")
        assert find_schedule(tmp_path)["beta_end"] == find_schedule(str(tmp_path))["beta_end"] == 0.012

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}', "[" * 100_000])
    def test_a_file_that_cannot_be_read_is_none(self, tmp_path, text):
        (tmp_path / "scheduler").mkdir()
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(text)
        assert find_schedule(tmp_path) is None


class TestWhichIsRead:
    @pytest.mark.parametrize("made", [DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler])
    def test_another_class_of_the_same_betas_changes_nothing(self, record, made):
        config = dict(made(timestep_spacing="trailing").config)
        assert with_own_schedule(record, config) == (record, ())
        assert with_own_schedule(record, None) == (record, ())

    @pytest.mark.parametrize(
        "changes", [{"beta_end": 0.012}, {"rescale_betas_zero_snr": True}, {"num_train_timesteps": 500}]
    )
    def test_other_betas_come_before_the_records(self, record, changes):
        config = find_schedule(pipeline(None, DDIMScheduler(**changes)))
        read, warnings = with_own_schedule(record, config)
        assert read.scheduler == config and read.bank is record.bank
        assert len(warnings) == 1 and "DDIMScheduler" in warnings[0] and "the suspect's" in warnings[0]

    def test_what_the_suspect_predicts_counts_for_healing(self, record):
        config = dict(DDPMScheduler(prediction_type="v_prediction").config)
        read, warnings = with_own_schedule(record, config)
        assert read.scheduler["prediction_type"] == "v_prediction" and not warnings

    @pytest.mark.parametrize(
        "config",
        [
            dict(FlowMatchEulerDiscreteScheduler().config),
            {},
            {"beta_start": []},
            {"beta_schedule": "unheard of"},
            {"trained_betas": [0.1], "num_train_timesteps": 10**12},
            {"beta_start": float("nan")},
        ],
        ids=["flow", "empty", "a list", "unheard of", "too many", "nan"],  # a config's own text has a set's order
    )
    def test_one_that_is_none_leaves_the_records_and_says_so(self, record, config):
        read, warnings = with_own_schedule(record, config)
        assert (read is record and len(warnings) == 1) or config == {
            "beta_start": pytest.approx(float("nan"), nan_ok=True)
        }


class TestFrozen:
    def test_a_frozen_schedule_reads_as_the_suspects_own(self, record):
        """A record whose writer froze the noise, so that his bank reaches the suspect as he made it."""
        record = dataclasses.replace(record, scheduler=dict(DDPMScheduler().config))
        frozen = dataclasses.replace(record, scheduler={"num_train_timesteps": 1000, "trained_betas": [1e-9] * 1000})
        unet, fed = tiny_unet(), []
        unet.conv_in.register_forward_pre_hook(lambda module, args: fed.append(args[0].clone()))
        honest = verify(pipeline(unet, DDPMScheduler()), KEY, record=record, **FEW)
        half = len(fed)
        forged = verify(pipeline(unet, DDPMScheduler()), KEY, record=frozen, **FEW)
        assert all(torch.equal(a, b) for a, b in zip(fed[:half], fed[half:], strict=True)) and half >= 2
        assert forged.looks == honest.looks
        verify(unet, KEY, record=frozen, **FEW)  # a bare denoiser brings none
        assert not torch.equal(fed[2 * half], fed[0])
        (warning,) = [text for text in forged.warnings if "noise schedule" in text]
        assert "read with the suspect's" in warning and not any("noise schedule" in text for text in honest.warnings)
        assert forged.hashes["record"] == frozen.sha256  # the file's, not that of what was read with

    def test_a_folders_is_found(self, record, tmp_path):
        unet = tiny_unet()
        unet.save_pretrained(tmp_path / "unet")
        DDPMScheduler(beta_end=0.5).save_pretrained(tmp_path / "scheduler")
        index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        report = verify(tmp_path, KEY, record=record, **FEW)
        assert any("noise schedule" in text for text in report.warnings)
