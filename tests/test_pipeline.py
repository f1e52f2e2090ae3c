"""The pipeline that marks, saves and verifies itself, beside the stock classes."""

import json

import numpy as np
import pytest
import torch
from _shipped import ASSETS, BASE
from _tiny import tiny_unconditional, tiny_unet
from _transformers import build
from diffusers import (
    AutoencoderKL,
    AutoPipelineForImage2Image,
    AutoPipelineForText2Image,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from aiao_diffusers import (
    LatentData,
    WatermarkedPipeline,
    WatermarkedStableDiffusionPipeline,
    WatermarkKey,
    WatermarkRecord,
    verify,
)
from aiao_diffusers.denoiser.hashes import weights_sha256
from aiao_diffusers.errors import AIAOError, AlreadyMarkedError, ConfigError


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


def _vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8, shift_factor=0.1
    ).eval()


def _sd1() -> StableDiffusionPipeline:
    parts = {"vae": _vae(), "unet": tiny_unet(), "scheduler": DDPMScheduler(clip_sample=False, steps_offset=1)}
    return StableDiffusionPipeline(**parts, **NONE["SD 1"], requires_safety_checker=False)


def _sd3() -> StableDiffusion3Pipeline:
    parts = {"vae": _vae(), "transformer": build("SD3"), "scheduler": FlowMatchEulerDiscreteScheduler()}
    return StableDiffusion3Pipeline(**parts, **NONE["SD 3"])


def _unconditional() -> DDPMPipeline:
    return DDPMPipeline(tiny_unconditional().eval(), DDPMScheduler())


NONE: dict[str, dict[str, None]] = {
    "SD 1": dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
    "SD 3": dict.fromkeys(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")),
    "unconditional": {},
}
"""Parts left out, which `from_pretrained` has to be told."""
STOCK = {"SD 1": _sd1, "SD 3": _sd3, "unconditional": _unconditional}
RECORD = WatermarkRecord(
    owner=KEY.owner,
    commitment=KEY.commitment,
    denoiser="UNet2DConditionModel",
    sites=2,
    in_sites=1,
    out_sites=1,
    kappa=1.0,
    response=1.0,
    scheduler={"num_train_timesteps": 1000},
    bank=LatentData(torch.zeros(1, 4, 8, 8), {"encoder_hidden_states": torch.zeros(1, 3, 12)}),
)


def drawn(kind: str, pipe: DiffusionPipeline) -> object:
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    text = torch.randn(1, 5, {"SD 1": 12, "SD 3": 16}.get(kind, 1), generator=torch.Generator().manual_seed(1))
    if kind == "SD 3":
        pooled = torch.zeros(1, 8)
        options |= {"prompt_embeds": text, "negative_prompt_embeds": text * 0}
        options |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled, "height": 8, "width": 8}
    elif kind == "SD 1":
        options |= {"prompt_embeds": text, "negative_prompt_embeds": text * 0, "height": 8, "width": 8}
    return pipe(**options).images


class TestAnyPipeline:
    @pytest.mark.parametrize("kind", STOCK)
    def test_it_is_the_stock_pipeline_with_a_record(self, tmp_path, kind):
        stock = STOCK[kind]()
        stock.save_pretrained(tmp_path / "stock")
        RECORD.save(tmp_path / "stock")
        pipe = WatermarkedPipeline.from_pretrained(tmp_path / "stock", **NONE[kind])
        assert isinstance(pipe, WatermarkedPipeline) and isinstance(pipe, type(stock))
        assert pipe.record is not None and pipe.record.commitment == KEY.commitment
        wanted = drawn(kind, stock)
        assert np.allclose(drawn(kind, pipe), wanted, rtol=0, atol=1e-5)  # memory's alignment rounds
        parts = dict(pipe.components)
        pipe.save_pretrained(tmp_path / "again")
        assert all(pipe.components[name] is part for name, part in parts.items()) and type(pipe) is not type(stock)
        index = json.loads((tmp_path / "again/model_index.json").read_text())
        assert index == json.loads((tmp_path / "stock/model_index.json").read_text()) | {
            "_name_or_path": str(tmp_path / "stock")
        }
        for loader in (DiffusionPipeline, type(stock)):
            again = loader.from_pretrained(tmp_path / "again", **NONE[kind])
            assert type(again) is type(stock) and np.allclose(drawn(kind, again), wanted, rtol=0, atol=1e-5)
            part = "transformer" if kind == "SD 3" else "unet"
            assert weights_sha256(getattr(again, part)) == weights_sha256(getattr(stock, part))
        assert (
            WatermarkedPipeline.from_pretrained(tmp_path / "again", **NONE[kind]).record.commitment == KEY.commitment
        )

    def test_an_unmarked_folder_has_no_record(self, tmp_path):
        _sd3().save_pretrained(tmp_path)
        pipe = WatermarkedPipeline.from_pretrained(tmp_path, **NONE["SD 3"])
        assert pipe.record is None
        pipe.save_pretrained(tmp_path / "again")
        assert not (tmp_path / "again" / "aiao").exists()
        with pytest.raises(AIAOError, match="record"):
            pipe.verify(KEY)

    def test_diffusers_finds_its_siblings(self, tmp_path):
        _sd3().save_pretrained(tmp_path)
        pipe = WatermarkedPipeline.from_pretrained(tmp_path, **NONE["SD 3"])
        assert type(AutoPipelineForImage2Image.from_pipe(pipe)) is StableDiffusion3Img2ImgPipeline

    def test_saving_keeps_half_precision_and_what_it_is_told(self, tmp_path):
        _sd1().save_pretrained(tmp_path / "stock")
        pipe = WatermarkedPipeline.from_pretrained(tmp_path / "stock", dtype=torch.float16, **NONE["SD 1"])
        pipe.save_pretrained(tmp_path / "saved", variant="fp16")
        assert (tmp_path / "saved/unet/diffusion_pytorch_model.fp16.safetensors").is_file()
        assert {p.dtype for p in pipe.unet.parameters()} == {torch.float16}

    @pytest.mark.parametrize(
        "name", ["NoSuchPipeline", "DiffusionPipeline", "UNet2DModel", "os.system", ["own", "Own"], None]
    )
    def test_classes_that_diffusers_does_not_have(self, tmp_path, name):
        _unconditional().save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text()) | {"_class_name": name}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(ConfigError, match="does not have"):
            WatermarkedPipeline.from_pretrained(tmp_path)

    def test_what_is_refused_before_anything_is_loaded_or_saved(self, tmp_path):
        _sd3().save_pretrained(tmp_path / "stock")
        with pytest.raises(ConfigError, match="StableDiffusion3Pipeline.*WatermarkedPipeline"):
            WatermarkedStableDiffusionPipeline.from_pretrained(tmp_path / "stock")
        with pytest.raises(ConfigError, match="custom_pipeline"):
            WatermarkedPipeline.from_pretrained(tmp_path / "stock", custom_pipeline="x")
        with pytest.raises(ConfigError, match="push_to_hub"):
            WatermarkedPipeline.from_pretrained(tmp_path / "stock", **NONE["SD 3"]).save_pretrained(
                tmp_path / "new", push_to_hub=True
            )
        assert not (tmp_path / "new").exists()
