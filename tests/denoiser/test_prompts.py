"""Prompts and images of pipelines other than Stable Diffusion 1: XL, its refiner, transformers."""

from functools import partial

import pytest
import torch
from _shipped import TOKENIZER
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from aiao_diffusers import EmbedConfig, LatentData, WatermarkKey, WatermarkRecord, embed, verify
from aiao_diffusers.denoiser import encode
from aiao_diffusers.denoiser.call import UNET_CALL, evaluate, nest
from aiao_diffusers.denoiser.capture import learn
from aiao_diffusers.denoiser.encode import from_images, prepare
from aiao_diffusers.denoiser.prompts import condition, encode_prompts, is_encoded
from aiao_diffusers.denoiser.setup import denoiser_of
from aiao_diffusers.errors import DataError
from tests.pipelines import FAMILIES


POOLED, TIMES = 12, 8


def xl(numbers: int = 6, **vae: object) -> StableDiffusionXLPipeline:
    """A miniature of Stable Diffusion XL of 16x16 pixels; `numbers` as its U-Net's micro-conditioning has."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 2000,
        "hidden_size": 12,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": 16,
        "projection_dim": POOLED,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIMES,
        projection_class_embeddings_input_dim=POOLED + numbers * TIMES,
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **vae,
    )
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    encoders = CLIPTextModel(CLIPTextConfig(**text)), CLIPTextModelWithProjection(CLIPTextConfig(**text))
    parts = (autoencoder.eval(), encoders[0].eval(), encoders[1].eval(), tokenizer, tokenizer, unet.eval())
    return StableDiffusionXLPipeline(*parts, DDIMScheduler(clip_sample=False), add_watermarker=False)


def picture() -> Image.Image:
    return Image.radial_gradient("L").resize((16, 16)).convert("RGB")


class TestXL:
    def test_the_denoiser_gets_what_its_own_pipeline_gives_it(self):
        pipe, seen = xl(), []
        pipe.set_progress_bar_config(disable=True)
        hook = pipe.unet.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
        pipe("a red cat", num_inference_steps=1, guidance_scale=1.0, output_type="latent")
        hook.remove()
        ours = prepare(pipe, [(picture(), "a red cat")]).keywords()
        ours = nest(ours)
        assert torch.equal(ours["encoder_hidden_states"], seen[0]["encoder_hidden_states"])
        for name, value in seen[0]["added_cond_kwargs"].items():
            assert torch.equal(ours["added_cond_kwargs"][name], value), name

    @pytest.mark.slow
    @pytest.mark.parametrize("source", ["prompts", "folder", None])
    def test_it_is_marked_from_whatever_its_owner_has(self, source, tmp_path, monkeypatch):
        # Of an owner who has nothing, 8 prompts of the tokenizer's words in place of 256.
        monkeypatch.setattr(encode, "vocabulary_prompts", partial(encode.vocabulary_prompts, count=8))
        (tmp_path / "images").mkdir()
        picture().save(tmp_path / "images" / "a.png")
        data = {"prompts": ["a red cat", "two stars", "a house"], "folder": tmp_path / "images", None: None}[source]
        pipe, key = xl(), WatermarkKey.generate("Owner")
        with pytest.warns(UserWarning, match="too weak"):
            report = embed(pipe, key, data, EmbedConfig(steps=1, in_sites=1, out_sites=2, max_price=None))
        report.record.save(tmp_path)
        record = WatermarkRecord.load(tmp_path)
        assert {"encoder_hidden_states", "added_cond_kwargs"} == set(nest(record.bank.keywords()))
        assert not verify(pipe, key, record=record, trials=2).verified

    def test_its_refiner_is_refused_before_any_picture_is_made(self, monkeypatch):
        pipe = xl(numbers=5)
        monkeypatch.setattr(StableDiffusionXLPipeline, "__call__", lambda *_, **__: pytest.fail("sampled"))
        for data in (["a cat"], [(picture(), "a cat")], None):
            with pytest.raises(DataError, match="sizes and a crop: pass LatentData"):
                prepare(pipe, data)

    def test_the_autoencoder_encodes_in_single_precision_where_half_overflows(self):
        pipe = xl(force_upcast=True)
        expected = from_images(pipe, [picture()], ["a"]).latents
        pipe.vae.half()
        again = from_images(pipe, [picture()], ["a"]).latents
        # Weights went through half precision, the activations did not.
        assert torch.allclose(again, expected, atol=1e-3) and pipe.vae.dtype == torch.float16

    def test_latents_are_whitened_by_channel_where_the_autoencoder_says_how(self):
        plain = from_images(xl(scaling_factor=1.0), [picture()], ["a"]).latents
        mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
        ours = from_images(xl(scaling_factor=0.5, latents_mean=mean, latents_std=std), [picture()], ["a"]).latents
        shape = (1, 4, 1, 1)
        assert torch.allclose(ours, 0.5 * (plain - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape))


class TestOthers:
    def test_conditioning_on_images_is_refused_by_name(self):
        pipe = xl()
        pipe.unet.register_to_config(addition_embed_type="image")
        with pytest.raises(DataError, match="on 'image' beside the text"):
            encode_prompts(pipe, ["a cat"])

    def test_many_prompts_go_in_batches(self):
        pipe = xl()
        words = [f"{n} stars" for n in range(70)]
        together = encode_prompts(pipe, words)
        assert together["added_cond_kwargs.time_ids"].shape == (70, 6)
        assert torch.allclose(
            together["encoder_hidden_states"][69:], encode_prompts(pipe, words[69:])["encoder_hidden_states"]
        )


class TestCondition:
    def test_stable_diffusion_is_conditioned_by_its_text_encoders_alone(self, monkeypatch):
        pipe = xl()
        monkeypatch.setattr(StableDiffusionXLPipeline, "__call__", lambda *_, **__: pytest.fail("ran"))
        rows, call = condition(pipe, ["a cat", "two stars"])
        wanted = encode_prompts(pipe, ["a cat", "two stars"])
        assert call == UNET_CALL and rows.keys() == wanted.keys()
        assert all(torch.equal(rows[name], wanted[name]) for name in wanted)

    @pytest.mark.slow
    def test_what_is_captured_is_what_its_text_encoders_say(self):
        pipe = xl()
        given, captured = encode_prompts(pipe, ["a cat", "two stars"]), learn(pipe, ["a cat", "two stars"]).data
        assert captured.call == UNET_CALL and captured.conditioning.keys() == given.keys()
        for name, value in given.items():
            torch.testing.assert_close(captured.conditioning[name], value)

    @pytest.mark.parametrize("name", ["stable_diffusion_3", "z_image", "latent_consistency", "dit", "ddpm"])
    def test_everything_else_by_capture(self, name):
        family = FAMILIES[name]
        pipe, prompts = family.build(), ["a cat", "two dogs on a mat", "rain", "a"]
        options = {} if family.rows else family.options
        learnt = None
        if name == "dit":
            learnt = learn(pipe, rows={"class_labels": [1, 2, 3]})
            with pytest.raises(DataError, match="does not run"):  # of classes that nobody names
                condition(pipe, prompts, learnt=learnt)
            return
        assert is_encoded(pipe) is (name == "ddpm")
        rows, call = condition(pipe, prompts, options=options)
        assert all(len(value) == len(prompts) for value in rows.values()) and bool(rows) is (name != "ddpm")
        example = learn(pipe, options=options).data.latents[:1].repeat(4, *[1] * 3)
        data = LatentData(example, rows, call)
        with torch.no_grad():
            found = evaluate(denoiser_of(pipe), data.latents, torch.full((4,), 500), data.keywords())
        assert found.shape == example.shape and torch.isfinite(found).all()
