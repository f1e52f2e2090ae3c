"""What cannot be marked is refused before anything is changed."""

from types import SimpleNamespace

import pytest
import torch
from _tiny import LEARN, few_steps, learner, same, tiny_unet, weights
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, inject_adapter_in_model

from aiao_diffusers import EmbedConfig, LatentData, WatermarkKey, embed
from aiao_diffusers.embedding.validation import find_trainable
from aiao_diffusers.errors import AlreadyMarkedError, ConfigError, DataError, TrainingError


KEY = WatermarkKey(bytes(range(32)), "Demo")


class TestDenoiser:
    def test_gradient_checkpointing_is_refused_and_nothing_changes(self):
        unet, data, scheduler = learner()
        unet.enable_gradient_checkpointing()
        before = weights(unet)
        with pytest.raises(ConfigError, match="disable_gradient_checkpointing"):
            embed(unet, KEY, data, few_steps(), scheduler=scheduler)
        assert same(weights(unet), before)

    def test_an_attached_adapter_is_refused(self):
        unet, data, scheduler = learner()
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), unet)
        with pytest.raises(ConfigError, match="unload_lora"):
            embed(unet, KEY, data, few_steps(), scheduler=scheduler)

    def test_a_schedule_of_no_known_kind_is_refused(self):
        unet, data, _ = learner()
        with pytest.raises(ConfigError, match="EDMEulerScheduler. is of no known kind"):
            embed(unet, KEY, data, few_steps(), scheduler=EDMEulerScheduler())

    def test_a_schedule_of_another_kind_than_the_pipelines_is_refused(self):
        unet, _, scheduler = learner()
        flow = FlowMatchEulerDiscreteScheduler()
        assert find_trainable(unet, flow, False) == (unet, flow)
        for own, other, kind in ((scheduler, flow, "betas"), (flow, scheduler, "flow matching")):
            with pytest.raises(ConfigError, match=f"trained by {kind}"):
                find_trainable(SimpleNamespace(unet=unet, scheduler=own), other, False)

    def test_a_denoiser_on_several_devices_is_refused(self):
        unet, data, scheduler = learner()
        unet.conv_out.to("meta")
        with pytest.raises(ConfigError, match="spread over \\['cpu', 'meta'\\]"):
            embed(unet, KEY, data, few_steps(), scheduler=scheduler)

    def test_weights_that_are_not_finite_are_refused_by_name(self):
        unet, data, scheduler = learner()
        unet.conv_in.bias.data[0] = float("nan")
        with pytest.raises(TrainingError, match="conv_in.bias"):
            embed(unet, KEY, data, few_steps(), scheduler=scheduler)

    def test_a_sound_one_is_found_in_its_pipeline_and_alone(self):
        unet, _, scheduler = learner()
        assert find_trainable(SimpleNamespace(unet=unet, scheduler=scheduler), None, False) == (unet, scheduler)
        assert find_trainable(unet, scheduler, False) == (unet, scheduler)
        with pytest.raises(ConfigError, match="pass scheduler="):
            find_trainable(unet, None, False)


class TestEarlier:
    def test_earlier_marks_need_their_record(self):
        unet, data, scheduler = learner()
        with pytest.raises(ConfigError, match="earlier="):
            embed(unet, KEY, data, few_steps(), scheduler=scheduler, keep=[KEY.child("first")])

    def test_earlier_keys_need_training(self):
        unet, data, scheduler = learner()
        with pytest.raises(ConfigError, match="keep= takes training"):
            embed(unet, KEY, data, few_steps(steps=0, edit=1.0), scheduler=scheduler, keep=[KEY.child("earlier")])

    @pytest.mark.parametrize("keep", [(), (KEY,)])
    def test_a_further_mark_of_another_kind(self, begun, keep):
        unet, record = begun
        data, scheduler = learner()[1:]
        before = [p.clone() for p in unet.parameters()]
        with pytest.raises(ConfigError, match="pass pairs=True"):
            further = {"earlier": record, "keep": keep, "scheduler": scheduler}
            embed(unet, KEY.child("b"), data, EmbedConfig(**LEARN, steps=1), **further)
        assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), before, strict=True))

    def test_a_marked_model_is_said_to_be_marked_first(self, begun):
        unet, record = begun
        marked = SimpleNamespace(unet=unet, record=record, scheduler=learner()[2])
        with pytest.raises(AlreadyMarkedError):
            embed(marked, KEY.child("b"), learner()[1], EmbedConfig(**LEARN, steps=1))


class TestData:
    def test_latents_of_another_model_are_refused(self):
        unet, _, scheduler = learner()
        with pytest.raises(DataError, match="do not fit"):
            embed(unet, KEY, LatentData(torch.randn(4, 4, 8, 8), {}), few_steps(), scheduler=scheduler)
        with pytest.raises(DataError, match="do not fit"):
            embed(tiny_unet(), KEY, LatentData(torch.randn(4, 4, 8, 8), {}), few_steps(), scheduler=scheduler)
