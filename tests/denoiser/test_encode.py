"""What owners hand in: unreadable images, other sizes, missing captions, prompts, nothing."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, UNet2DModel, VQModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from aiao_diffusers import LatentData
from aiao_diffusers.denoiser.encode import from_images, prepare, vocabulary_prompts
from aiao_diffusers.denoiser.inputs import fitting
from aiao_diffusers.errors import DataError


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

    def test_words_of_either_kind_of_tokenizer(self):
        for words in (["cat</w>", "ab</w>", "tree"], ["\u2581cat", "\u2581ab", "tree"]):
            vocabulary = {word: i for i, word in enumerate(words)}
            pipe = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda v=vocabulary: v))
            assert vocabulary_prompts(pipe, count=2) == ["cat cat", "cat cat"]
