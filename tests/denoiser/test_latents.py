"""What a pipeline's scheduler steps through, made of pictures: found from both ends of the pipeline's own way back."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL

from aiao_diffusers.denoiser.latents import (
    Rearrangement,
    autoencoder,
    check_pictures,
    fit,
    learn_latents,
    posterior_mean,
    replaced,
)
from aiao_diffusers.errors import DataError
from tests.pipelines import FAMILIES


CHANNELS = 3
SCALE, SHIFT = torch.tensor([0.2, 1.0, -3.0]).view(1, 3, 1, 1), torch.tensor([0.0, 0.5, -2.0]).view(1, 3, 1, 1)
PLAIN, LAST = Rearrangement(), Rearrangement(last=True)
PACKED = Rearrangement(2, last=True)
INNER, COARSE = Rearrangement(2, inner=True), Rearrangement(4, inner=True, last=True)
# What diffusers' pipelines write by hand.
SAMPLES = {
    "as they are": (PLAIN, lambda x: x),
    "with a frame": (PLAIN, lambda x: x.unsqueeze(2)),
    "with a frame in front": (PLAIN, lambda x: x.unsqueeze(1)),
    "channels last, with a frame": (LAST, lambda x: x.permute(0, 2, 3, 1).unsqueeze(1)),
    "tokens": (LAST, lambda x: x.flatten(2).transpose(1, 2)),
    "FLUX.1's tokens": (PACKED, lambda x: x.view(2, 3, 4, 2, 6, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 24, 12)),
    "FLUX.2's patches": (
        Rearrangement(2),
        lambda x: x.view(2, 3, 4, 2, 6, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 4, 6),
    ),
    "channels inside a patch": (
        INNER,
        lambda x: x.view(2, 3, 4, 2, 6, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 12, 4, 6),
    ),
    "coarse tokens": (COARSE, lambda x: x.view(2, 3, 2, 4, 3, 4).permute(0, 2, 4, 3, 5, 1).reshape(2, 6, 48)),
}


def encoded(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, CHANNELS, 8, 12, generator=torch.Generator().manual_seed(rows))


class TestFit:
    @pytest.mark.parametrize("frame", [False, True])
    @pytest.mark.parametrize("name", SAMPLES)
    def test_it_finds_how_latents_lie_and_their_line_by_channel(self, name, frame):
        expected, arrange = SAMPLES[name]
        latents = encoded()
        given = latents.unsqueeze(2) if frame else latents
        found = fit("Pipeline", given, arrange(latents * SCALE + SHIFT), (12, 8))
        assert found.rearrangement == expected and found.encoded == given.shape[1:]
        other = encoded() + 1
        wanted = arrange(other * SCALE + SHIFT)
        made = found.apply(other.unsqueeze(2) if frame else other)
        assert made.dtype == torch.float32 and made.shape == wanted.shape
        assert (made - wanted).abs().max() < 1e-5

    def test_a_line_for_each_place_in_a_patch_is_found_too(self):
        # FLUX.2 normalises after packing.
        patched = SAMPLES["FLUX.2's patches"][1](encoded())
        scale, shift = torch.linspace(0.5, 2, 12).view(1, 12, 1, 1), torch.linspace(-1, 1, 12).view(1, 12, 1, 1)
        found = fit("Pipeline", encoded(), patched * scale + shift, (12, 8))
        assert torch.allclose(found.scale, scale.flatten().double(), atol=1e-6)
        assert torch.allclose(found.shift, shift.flatten().double(), atol=1e-6)

    def test_no_shift_is_none_exactly(self):
        sample = encoded() * 0.18215
        latents = (1000 * sample).float() / 182.15
        assert not fit("Pipeline", latents, sample, (12, 8)).shift.any()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_rounding_of_half_precision_is_no_difference(self, dtype):
        sample = encoded(16).to(dtype)
        scale, shift = SCALE.to(dtype), SHIFT.to(dtype)
        found = fit("Pipeline", (sample - shift) / scale, sample, (12, 8))
        assert found.rearrangement == PLAIN
        assert torch.allclose(found.scale, SCALE.flatten().double(), rtol=4 * torch.finfo(dtype).eps)

    @pytest.mark.parametrize(
        "change",
        [
            torch.tanh,
            lambda x: x + 3e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
            lambda x: x.flip(3),
            lambda x: x[:, :2],
            lambda x: x[:1],
            lambda x: x * torch.linspace(1, 2, 12),
            torch.zeros_like,
        ],
        ids=["bent", "noised", "mirrored", "fewer channels", "fewer rows", "scaled by place", "nothing"],
    )
    def test_anything_else_is_refused_by_name(self, change):
        with pytest.raises(DataError, match=r"OddPipeline makes its .* not understood: pass prompts, or LatentData"):
            fit("OddPipeline", encoded(), change(encoded()), (12, 8))

    def test_too_few_places_prove_nothing(self):
        latents = torch.randn(1, 3, 1, 3)
        with pytest.raises(DataError, match="not understood"):
            fit("Pipeline", latents, latents, (3, 1))


class TestLearning:
    def learn(self, pipe, name="flux_1_dev"):
        return learn_latents(pipe, FAMILIES[name].keywords(["a red fox"]))

    def test_the_pipeline_is_as_it_was_whatever_happens(self):
        pipe = FAMILIES["flux_1_dev"].build()
        own = pipe.vae.decode
        assert self.learn(pipe).size == (64, 64)
        assert "decode" not in vars(pipe.vae) and "step" not in vars(pipe.scheduler)

        def broken(*_, **__):
            raise RuntimeError("no memory")

        pipe.vae.decode = broken
        with pytest.raises(DataError, match="does not run.*no memory"):
            self.learn(pipe)
        assert pipe.vae.decode is broken and "step" not in vars(pipe.scheduler)
        pipe.vae.decode = lambda *args, **kwargs: own(*args, **kwargs)  # as a user who compiles it
        assert self.learn(pipe).rearrangement == PACKED

    def test_a_pipeline_that_decodes_nothing_is_refused(self):
        pipe = FAMILIES["flux_1_dev"].build()
        with pytest.raises(DataError, match="FluxPipeline did not step its scheduler and decode"):
            learn_latents(pipe, {**FAMILIES["flux_1_dev"].keywords(["a red fox"]), "output_type": "latent"})

    def test_frames_that_only_the_run_shows_are_refused(self):
        with pytest.raises(DataError, match="WanPipeline draws videos"):
            self.learn(FAMILIES["wan"].build(), "wan")

    def test_what_decodes_to_no_picture_is_refused(self):
        pipe = FAMILIES["flux_1_dev"].build()
        own = pipe.vae.decode
        pipe.vae.decode = lambda *args, **kwargs: (own(*args, **kwargs)[0][:, [0, 1, 2, 0]],)
        with pytest.raises(DataError, match=r"FluxPipeline decodes \(1, 4, 64, 64\), which is no picture"):
            self.learn(pipe)

    def test_an_autoencoder_that_encodes_other_latents_than_it_decodes_is_refused(self):
        pipe = FAMILIES["flux_1_dev"].build()
        found = self.learn(pipe)
        with pytest.raises(DataError, match=r"AutoencoderKL of FluxPipeline encodes pictures as \(8, 4, 4\)"):
            found.encode(pipe, torch.zeros(1, 3, 32, 32))


class TestAutoencoders:
    def test_by_any_of_their_names(self):
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
        for name in ("vae", "vqvae", "movq"):
            assert autoencoder(SimpleNamespace(**{name: vae})) is vae
        assert autoencoder(SimpleNamespace(vae=None)) is None and autoencoder(SimpleNamespace()) is None

    def test_the_mean_in_whatever_encode_returns(self):
        value = torch.randn(1, 2)
        kinds = (
            SimpleNamespace(latent_dist=SimpleNamespace(mean=value)),
            SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: value)),
            SimpleNamespace(latents=value),
            SimpleNamespace(latent=value),
            (value,),
            value,
        )
        assert all(posterior_mean(kind) is value for kind in kinds)

    def test_pictures_are_refused_before_anything_runs(self):
        families = {name: FAMILIES[name].build() for name in ("wan", "sana_video", "flux_1_dev", "ddpm")}
        for name in ("wan", "sana_video"):
            with pytest.raises(DataError, match=r"draws videos, .*pass prompts, or LatentData"):
                check_pictures(families[name])
        check_pictures(families["wan"], {"num_frames": 1})
        check_pictures(families["flux_1_dev"])
        families["flux_1_dev"].vae = None
        for pixels in (False, True):
            with pytest.raises(DataError, match="FluxPipeline was loaded without its autoencoder"):
                check_pictures(families["flux_1_dev"], pixels=pixels)
        check_pictures(families["ddpm"], pixels=True)
        with pytest.raises(DataError, match="DDPMPipeline has no autoencoder"):
            check_pictures(families["ddpm"])


def test_a_method_is_listened_to_and_put_back():
    class Adder:
        def add(self, a: int, b: int = 1) -> int:
            return a + b

    adder, heard = Adder(), []

    def listen(original, *args, **kwargs):
        heard.append(args)
        return original(*args, **kwargs)

    with replaced(adder, "add", listen):
        assert adder.add(1, b=2) == 3 and heard == [(1,)]
    assert not vars(adder)
