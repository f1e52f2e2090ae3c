"""What owners hand in: unreadable images, other sizes, missing captions, prompts, nothing."""

import functools
import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, UNet2DModel, VQModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from aiao_diffusers import LatentData
from aiao_diffusers.denoiser import encode
from aiao_diffusers.denoiser.call import UNET_CALL, evaluate
from aiao_diffusers.denoiser.capture import BATCH
from aiao_diffusers.denoiser.encode import from_images, from_prompts, is_classic, prepare, vocabulary_prompts
from aiao_diffusers.denoiser.inputs import fitting
from aiao_diffusers.denoiser.latents import learn_latents
from aiao_diffusers.errors import DataError
from tests.pipelines import FAMILIES, text


PIXELS = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace(sample_size=8)), scheduler=object())
"""What `from_images` asks of an unconditional pipeline of 8x8 pixels: no VAE, no prompts."""


def folder(path, good: int, bad: int = 0, side: int = 8):
    path.mkdir()
    for i in range(good):
        Image.new("RGB", (side, side), (10 * i, 0, 0)).save(path / f"good{i}.png")
    for i in range(bad):
        (path / f"bad{i}.png").write_bytes(b"" if i % 2 == 0 else b"\x89PNG cut")
    return path


def latent_pipe(autoencoder) -> LDMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    return LDMPipeline(autoencoder, unet, DDIMScheduler())


LEVELS = {
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "latent_channels": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


class TestUnconditionalLatents:
    """`LDMPipeline` calls its autoencoder vqvae, whatever it is, and takes no prompts."""

    @pytest.mark.parametrize("kind", [AutoencoderKL, VQModel])
    def test_its_own_autoencoder_encodes(self, kind):
        pipe = latent_pipe(kind(**LEVELS, scaling_factor=0.5).eval())
        image = Image.radial_gradient("L").resize((8, 8)).convert("RGB")
        data = from_images(pipe, [image], [""])
        encoded = pipe.vqvae.encode(VaeImageProcessor(vae_scale_factor=2).preprocess(image))
        expected = encoded.latents if kind is VQModel else encoded.latent_dist.mean
        assert torch.allclose(data.latents, 0.5 * expected, atol=1e-6) and not data.conditioning

    def test_latents_cached_with_captions_serve_it_without(self, tmp_path):
        cached = LatentData(torch.randn(3, 2, 4, 4), {"encoder_hidden_states": torch.randn(3, 5, 6)})
        cached.save(tmp_path / "cached.safetensors", dtype=torch.float32)
        pipe = latent_pipe(AutoencoderKL(**LEVELS))
        for data in (
            prepare(pipe, tmp_path / "cached.safetensors"),
            prepare(pipe, cached),
            fitting(cached, pipe.unet),
        ):
            assert torch.equal(data.latents, cached.latents) and not data.conditioning

    def test_conditioning_that_the_denoiser_takes_is_kept(self):
        labelled = LatentData(torch.randn(3, 2, 4, 4), {"class_labels": torch.arange(3)})
        assert prepare(latent_pipe(AutoencoderKL(**LEVELS)), labelled) is labelled


class TestImages:
    def test_unreadable_ones_are_named_and_skipped(self, tmp_path):
        source = folder(tmp_path / "images", good=18, bad=2)
        with pytest.warns(UserWarning, match=r"2 of 20 images cannot be read: .*bad0\.png.*bad1\.png"):
            data = prepare(PIXELS, source)
        assert data.latents.shape == (18, 3, 8, 8)

    def test_too_many_are_an_error(self, tmp_path):
        source = folder(tmp_path / "images", good=7, bad=2)
        with pytest.raises(DataError, match="2 of 9 images cannot be read.*max_unreadable"):
            prepare(PIXELS, source)
        with pytest.warns(UserWarning, match="skipped"):
            assert len(prepare(PIXELS, source, max_unreadable=0.3)) == 7

    def test_nothing_readable_is_an_error_whatever_the_share(self, tmp_path):
        with pytest.raises(DataError, match="2 of 2"):
            prepare(PIXELS, folder(tmp_path / "images", good=0, bad=2), max_unreadable=0.99)
        with pytest.raises(DataError, match="no images"):
            from_images(PIXELS, [], [])
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="empty"):
            prepare(PIXELS, tmp_path / "empty")

    def test_other_sizes_are_cropped_resized_and_said(self):
        wide = Image.new("RGB", (32, 8), "black")
        wide.paste("white", (12, 0, 20, 8))
        with pytest.warns(UserWarning, match="1 of 2 images were not 8x8"):
            data = from_images(PIXELS, [wide, Image.new("RGB", (8, 8))], ["", ""])
        # The middle square is all white: proportions are kept, the sides are cut.
        assert data.latents[0].min() == 1 and data.latents[1].max() == -1

    def test_right_sizes_without_captions_are_quiet_for_a_denoiser_without_prompts(self, tmp_path):
        source = folder(tmp_path / "images", good=3)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert len(prepare(PIXELS, source)) == 3

    def test_missing_captions_are_said_where_prompts_count(self, tmp_path):
        source = folder(tmp_path / "images", good=3)
        names = ["good0.png", "good1.png", "good2.png"]
        rows = [{"file_name": n, "text": t} for n, t in zip(names, ["a cat", None, ""], strict=True)]
        (source / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        seen = []

        def encode_prompt(prompt, **rest):
            seen.extend(prompt)
            return (torch.zeros(len(prompt), 2, 4),)

        pipe = SimpleNamespace(**vars(PIXELS), encode_prompt=encode_prompt, device="cpu")
        with pytest.warns(UserWarning, match="2 of 3 images have no caption"):
            data = prepare(pipe, source)
        assert sorted(seen[1:]) == ["", "", "a cat"] and data.conditioning["encoder_hidden_states"].shape == (3, 2, 4)


class TestPromptsAndFiles:
    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("a.txt", "\n \n", "no prompts"),
            ("a.json", "{", "cannot be read"),
            ("a.json", '{"a": 1}', "expected a list"),
            ("a.safetensors", "x", "cached latents"),
        ],
    )
    def test_useless_files_are_named(self, tmp_path, name, text, words):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=words):
            prepare(PIXELS, tmp_path / name)

    def test_a_denoiser_without_prompts_cannot_make_its_own_data(self):
        with pytest.raises(DataError, match="tokenizer"):
            prepare(PIXELS, None)
        with pytest.raises(DataError, match="takes no prompts"):
            prepare(PIXELS, ["a cat"])
        with pytest.raises(DataError, match="bare denoiser"):
            prepare(torch.nn.Identity(), None)

    def test_words_of_each_kind_of_tokenizer(self):
        byte = ["\u0120cat", "\u0120ab", "\u0120\u00e4\u00b8\u0143", "tree", "\u0120c4t"]
        for words in (["cat</w>", "ab</w>", "tree"], ["\u2581cat", "\u2581ab", "tree"], byte):
            vocabulary = {word: i for i, word in enumerate(words)}
            pipe = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda v=vocabulary: v))
            assert vocabulary_prompts(pipe, count=2) == ["cat cat", "cat cat"]

    @pytest.mark.parametrize(
        "make",
        [text.t5_tokenizer, text.gemma_tokenizer, text.llama_tokenizer, text.chat_tokenizer],
    )
    def test_words_are_those_of_the_vocabulary(self, make):
        tokenizer = make()
        prompts = vocabulary_prompts(SimpleNamespace(tokenizer=tokenizer), count=20)
        assert prompts == vocabulary_prompts(SimpleNamespace(tokenizer=tokenizer), count=20) and len(set(prompts)) > 10
        known = set(text.WORDS.split()) | {"system", "user", "assistant"}
        assert {word for prompt in prompts for word in prompt.lower().split()} <= known

    def test_words_of_a_tokenizer_inside_a_processor_or_of_a_second_one(self):
        inside = SimpleNamespace(tokenizer=SimpleNamespace(tokenizer=text.chat_tokenizer()))
        letters = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1})
        second = SimpleNamespace(tokenizer=letters, components={"tokenizer_2": text.t5_tokenizer(), "vae": None})
        for pipe in (inside, second):
            assert len(vocabulary_prompts(pipe, count=3)) == 3


def gradient(mode: str = "RGB") -> Image.Image:
    return Image.radial_gradient("L").resize((64, 64)).convert(mode)


def refused(pipe, data, words: str, monkeypatch, options=None) -> None:
    """`prepare` refuses before the pipeline runs or a part of it does."""
    with monkeypatch.context() as patch, pytest.raises(DataError, match=words):
        patch.setattr(type(pipe), "__call__", watched(type(pipe).__call__))
        prepare(pipe, data, options=options)


def watched(call):
    """Keeps the signature, by which pipelines tell what they take."""

    @functools.wraps(call)
    def run(*_, **__):
        pytest.fail("the pipeline ran")

    return run


class TestStableDiffusion:
    """Its path is its own: files of latents and verdicts recorded before hang on every bit."""

    def test_prompts_give_what_its_pipeline_samples_at_guidance_three(self):
        pipe = FAMILIES["stable_diffusion"].build()
        torch.manual_seed(0)
        data = from_prompts(pipe, ["a red fox", "two cats"], steps=2)
        torch.manual_seed(0)
        drawn = pipe(["a red fox", "two cats"], num_inference_steps=2, guidance_scale=3.0, output_type="latent").images
        assert torch.equal(data.latents, drawn) and data.call == UNET_CALL
        assert list(data.conditioning) == ["encoder_hidden_states"]

    def test_pictures_are_scaled_by_its_factor(self):
        pipe = FAMILIES["stable_diffusion"].build()
        data = prepare(pipe, [(gradient(), "a red fox")])
        with torch.no_grad():
            encoded = pipe.vae.encode(VaeImageProcessor(vae_scale_factor=8).preprocess(gradient()))
        assert torch.equal(data.latents, encoded.latent_dist.mean * pipe.vae.config.scaling_factor)
        assert data.call == UNET_CALL

    def test_the_map_that_is_learnt_of_it_is_the_same(self):
        pipe = FAMILIES["stable_diffusion"].build()
        learnt = learn_latents(pipe, FAMILIES["stable_diffusion"].keywords(["a red fox"]))
        pixels = VaeImageProcessor(vae_scale_factor=8).preprocess(gradient())
        expected = from_images(pipe, [gradient()], ["a"]).latents
        with torch.no_grad():
            assert (learnt.encode(pipe, pixels) - expected).abs().max() < 1e-6 * expected.abs().max()

    def test_which_pipelines_are_of_its_kind(self):
        names = ("stable_diffusion", "stable_diffusion_xl", "ddpm", "deepfloyd_if", "kandinsky_3", "flux_1_dev", "wan")
        assert [is_classic(FAMILIES[name].build()) for name in names] == [True] * 4 + [False] * 3


class TestOtherPipelines:
    options = FAMILIES["flux_1_dev"].options

    @pytest.mark.slow
    def test_a_folder_is_encoded_as_the_pipeline_decodes(self, tmp_path):
        source = folder(tmp_path / "images", good=2, bad=0, side=64)
        for name, mode in (("grey", "L"), ("clear", "RGBA"), ("wide", "RGB")):
            size = (96, 64) if name == "wide" else (64, 64)
            Image.new(mode, size).save(source / f"{name}.png")
        rows = [{"file_name": f"{n}.png", "text": f"a {n} fox"} for n in ("clear", "good0", "good1", "grey", "wide")]
        (source / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        pipe = FAMILIES["flux_1_dev"].build()
        with pytest.warns(UserWarning, match="1 of 5 images were not 64x64: cropped and resized"):
            data = prepare(pipe, source, options=self.options)
        assert data.latents.shape == (5, 16, 32) and data.call != UNET_CALL
        # Black, whatever it was stored as.
        assert torch.equal(data.latents[0], data.latents[1]) and torch.equal(data.latents[0], data.latents[3])
        assert not torch.equal(data.latents[0], data.latents[2])
        states = data.conditioning["encoder_hidden_states"]
        assert len(states) == 5 and len({tuple(row.flatten().tolist()) for row in states}) == 5
        with torch.no_grad():
            predicted = evaluate(pipe.transformer, data.latents, torch.full((5,), 500.0), data.keywords())
        assert predicted.shape == data.latents.shape and predicted.isfinite().all()
        data.save(tmp_path / "cached.safetensors", dtype=torch.float32)
        cached = prepare(pipe, tmp_path / "cached.safetensors")
        assert torch.equal(cached.latents, data.latents) and cached.call.to_json() == data.call.to_json()

    def test_large_latents_are_sampled_a_few_at_once(self, monkeypatch):
        pipe, given = FAMILIES["flux_1_dev"].build(), []
        monkeypatch.setattr(encode, "VALUES", 2 * 16 * 32)
        monkeypatch.setattr(encode, "capture_rows", lambda *args, **options: given.append(options["batch"]))
        from_prompts(pipe, ["a red fox"] * 5, options=self.options)
        monkeypatch.undo()
        monkeypatch.setattr(encode, "capture_rows", lambda *args, **options: given.append(options["batch"]))
        from_prompts(pipe, ["a red fox"] * 5, options=self.options)
        assert given == [2, BATCH]

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["stable_diffusion_3", "flux_1_dev", "qwen_image"])
    def test_half_precision_costs_its_rounding_alone(self, name):
        family = FAMILIES[name]
        pipe, rows = family.build(), [(gradient(), "a red fox")]
        single = prepare(pipe, rows, options=family.options)
        half = prepare(pipe.to(torch.bfloat16), rows, options=family.options)
        assert half.latents.dtype == torch.float32 and half.latents.shape == single.latents.shape
        assert (half.latents - single.latents).norm() < 0.1 * single.latents.norm()

    @pytest.mark.slow
    def test_captions_that_are_missing_are_empty_where_the_pipeline_takes_that(self):
        # Of captions that are padded alike, here all of them, Qwen-Image hands out no mask.
        family = FAMILIES["qwen_image"]
        pipe = family.build()
        with pytest.warns(UserWarning, match="2 of 2 images have no caption"):
            data = prepare(pipe, [(gradient(), None), (gradient(), "")], options=family.options)
        states = data.conditioning["encoder_hidden_states"]
        assert torch.equal(states[0], states[1])
        family = FAMILIES["bria_fibo"]
        with pytest.raises(DataError, match="does not run: .* give each image a caption"):
            prepare(family.build(), [(gradient(), "a red fox"), (gradient(), None)], options=family.options)

    def test_options_say_the_size(self):
        pipe = FAMILIES["flux_1_dev"].build()
        made = prepare(pipe, [(gradient().resize((64, 32)), "a red fox")], options={**self.options, "height": 32})
        assert made.latents.shape == (1, 8, 32)

    @pytest.mark.slow
    def test_prompts_give_guided_latents_with_the_unguided_conditioning(self):
        pipe = FAMILIES["flux_1_dev"].build()
        data = from_prompts(pipe, ["a red fox", "two cats"], steps=3, options=self.options)
        other = from_prompts(pipe, ["a red fox", "two cats"], steps=3, options=self.options, guidance=1.0)
        assert data.latents.shape == (2, 16, 32) and data.call != UNET_CALL
        assert not torch.equal(data.latents, other.latents)
        assert torch.equal(data.conditioning["encoder_hidden_states"], other.conditioning["encoder_hidden_states"])

    @pytest.mark.slow
    def test_prompts_of_a_pipeline_of_pixels_give_pixels(self):
        family = FAMILIES["deepfloyd_if"]
        data = prepare(family.build(), ["a red fox", "two cats"], options=family.options)
        assert data.latents.shape == (2, 3, 8, 8)

    @pytest.mark.slow
    def test_videos_take_prompts_and_a_picture_as_their_only_frame(self):
        family = FAMILIES["wan"]
        pipe = family.build()
        assert prepare(pipe, ["a red fox"], options=family.options).latents.shape == (1, 16, 2, 4, 4)
        data = prepare(pipe, [(gradient(), "a red fox")], options={**family.options, "num_frames": 1})
        assert data.latents.shape == (1, 16, 1, 4, 4)

    def test_what_cannot_be_encoded_is_refused_before_anything_runs(self, tmp_path, monkeypatch):
        pictures, source = [(gradient(), "a red fox")], folder(tmp_path / "images", good=1)
        video, pipe = FAMILIES["wan"].build(), FAMILIES["flux_1_dev"].build()
        for data in (pictures, source):
            refused(video, data, "WanPipeline draws videos.*pass prompts, or LatentData", monkeypatch)
        for data in (pictures, ["a red fox"], None):
            refused(pipe, data, "no option 'heigth'", monkeypatch, {"heigth": 64})
        cached = LatentData(torch.zeros(1, 16, 32), {})
        refused(pipe, cached, r"cached latents are made already.*\['height'\]", monkeypatch, {"height": 64})
        pipe.vae = None
        refused(pipe, pictures, "loaded without its autoencoder", monkeypatch)
        refused(FAMILIES["dit"].build(), pictures, "DiTPipeline takes no captions: pass LatentData", monkeypatch)
        refused(FAMILIES["dit"].build(), ["a fox"], "DiTPipeline takes no prompts", monkeypatch)

    @pytest.mark.parametrize("name", ["stable_diffusion", "flux_1_dev"])
    def test_missing_parts_are_named(self, name, monkeypatch):
        pipe = FAMILIES[name].build()
        pipe.text_encoder = None
        for data in ([(gradient(), "a red fox")], ["a red fox"]):
            refused(pipe, data, "loaded without text_encoder", monkeypatch)
        pipe = FAMILIES[name].build()
        pipe.vae = None
        refused(pipe, [(gradient(), "a red fox")], "loaded without its autoencoder", monkeypatch)
