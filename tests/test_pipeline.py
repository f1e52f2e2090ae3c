"""The pipeline that marks, saves and verifies itself, beside the stock classes."""

import json

import pytest
import torch
from _shipped import ASSETS, BASE
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

from aiao_diffusers import WatermarkedStableDiffusionPipeline, WatermarkKey, verify
from aiao_diffusers.errors import AlreadyMarkedError


KEY = WatermarkKey(bytes(range(32)), "Demo")


def pipeline() -> WatermarkedStableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return WatermarkedStableDiffusionPipeline.from_pretrained(BASE, unet=unet.eval())


@pytest.mark.slow
class TestBadInput:
    def test_broken_weights_are_not_testable(self):
        pipe = WatermarkedStableDiffusionPipeline.from_pretrained(ASSETS / "marked")
        next(pipe.unet.parameters()).data.flatten()[0] = float("nan")
        report = pipe.verify(KEY)
        assert report.verdict == "not_testable" and "NaN" in report.reason

    def test_marked_twice_needs_the_flag(self):
        pipe = WatermarkedStableDiffusionPipeline.from_pretrained(ASSETS / "marked")
        with pytest.raises(AlreadyMarkedError):
            pipe.embed(KEY)


@pytest.mark.slow
class TestPipeline:
    def test_stock_classes_make_the_same_images(self, tmp_path):
        ours = WatermarkedStableDiffusionPipeline.from_pretrained(ASSETS / "marked")
        ours.save_pretrained(tmp_path / "saved")
        assert (
            json.loads((tmp_path / "saved/model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
        )

        def latents(pipe):
            pipe.set_progress_bar_config(disable=True)
            options = {
                "num_inference_steps": 3,
                "output_type": "latent",
                "generator": torch.Generator().manual_seed(0),
            }
            return pipe("cat face", **options).images

        wanted = latents(StableDiffusionPipeline.from_pretrained(ASSETS / "marked"))
        assert torch.equal(latents(ours), wanted)
        for stock in (StableDiffusionPipeline, DiffusionPipeline, AutoPipelineForText2Image):
            pipe = stock.from_pretrained(tmp_path / "saved")
            assert type(pipe) is StableDiffusionPipeline and torch.equal(latents(pipe), wanted)
        assert verify(tmp_path / "saved", KEY).verified


@pytest.mark.slow
def test_saving_leaves_the_pipeline_as_it_is(tmp_path):
    pipe = pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path / "saved")
    assert {p.dtype for part in (pipe.unet, pipe.text_encoder, pipe.vae) for p in part.parameters()} == {torch.float16}
    assert '"StableDiffusionPipeline"' in (tmp_path / "saved" / "model_index.json").read_text()
    again = WatermarkedStableDiffusionPipeline.from_pretrained(tmp_path / "saved", dtype=torch.float16)
    assert torch.equal(again.unet.conv_in.weight, pipe.unet.conv_in.weight)
