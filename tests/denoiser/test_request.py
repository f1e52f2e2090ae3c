"""What a pipeline is asked for; `test_capture` has the refusals."""

import pytest
import torch
from _families import Denoiser, Pipeline, texts
from _tiny import tiny_unet
from diffusers import StableDiffusionPipeline

from aiao_diffusers.denoiser.request import (
    PROMPTS,
    Request,
    attempts,
    check_prompts,
    fewer_places,
    named_denoiser,
    scheduler_config,
)
from aiao_diffusers.errors import DataError


def plain(pipe, latents, t, prompts):
    pipe.seen = prompts
    return pipe.transformer(latents, timestep=t, text=texts(prompts)).sample


def test_places_options_and_guidance():
    pipe = Pipeline(plain)
    asked = Request(pipe, pipe.transformer, ["a", "b", "c"], {}, {"size": 5}, {"guidance_scale": 0.0})
    heard = asked.run([2, 0], 3, torch.Generator())
    assert pipe.seen == ["c", "a"] and pipe.guidance == 0.0 and heard.last.shape == (2, 3, 5)
    for scale, guidance in ((None, 4.0), (7.5, 7.5)):
        asked.run_guided([1], 3, torch.Generator(), scale)
        assert pipe.guidance == guidance


def test_the_global_generator_is_the_same_before_and_after():
    drawn = []

    def call(pipe, latents, t, prompts):
        drawn.append(float(torch.rand(1)))
        return plain(pipe, latents, t, prompts)

    pipe, state = Pipeline(call), torch.get_rng_state()
    asked = Request(pipe, pipe.transformer, ["a"], {}, {})
    for _ in range(2):
        asked.run([0], 3, torch.Generator().manual_seed(7))
    assert drawn[:3] == drawn[3:] and torch.equal(torch.get_rng_state(), state)


def test_rows_are_picked_with_their_prompts():
    class Sized(Pipeline):
        def __call__(self, prompt, sizes, num_inference_steps=3, generator=None):
            self.sizes = sizes
            return super().__call__(prompt, num_inference_steps, generator=generator)

    pipe = Sized(plain)
    Request(pipe, pipe.transformer, ["a", "b", "c"], {"sizes": [1, 2, 3]}, {}).run([0, 2], 3, torch.Generator())
    assert pipe.sizes == [1, 3]
    Request(pipe, pipe.transformer, ["a", "b"], {"sizes": torch.tensor([4, 5])}, {}).run([1], 3, torch.Generator())
    assert pipe.sizes.tolist() == [5]


def test_guidance_is_tried_on_then_one_then_zero():
    assert list(attempts(Pipeline(plain), {})) == [{}, {"guidance_scale": 1.0}, {"guidance_scale": 0.0}]
    assert list(attempts(Pipeline(plain), {"guidance_scale": 3.0})) == [{}]


def test_the_run_with_fewer_keeps_the_longest_and_the_shortest():
    pipe = Pipeline(plain)
    assert fewer_places(Request(pipe, pipe.transformer, ["aaa", "a", "aa"], {}, {}), [0, 1, 2]) == [0, 1]
    assert fewer_places(Request(pipe, pipe.transformer, None, {}, {}), [0, 1, 2]) == [0, 1]
    assert len({len(prompt) for prompt in PROMPTS}) == 3


def test_a_schedulers_config_is_the_same_in_every_process():
    pipe = Pipeline(plain)
    config = scheduler_config(pipe)
    assert config["_class_name"] == "FlowMatchEulerDiscreteScheduler" and config["shift"] == 1.0
    assert config["_use_default_values"] == sorted(config["_use_default_values"]) != []


def test_denoisers_by_name():
    pipe = Pipeline(plain)
    assert named_denoiser(pipe) == ("transformer", pipe.transformer) == named_denoiser(pipe, "transformer")
    pipe.scheduler = None
    with pytest.raises(DataError, match="no denoiser that a scheduler drives"):
        named_denoiser(pipe)
    assert isinstance(named_denoiser(Pipeline(plain))[1], Denoiser)


def test_a_pipeline_without_what_reads_prompts():
    parts = [None, None, None, tiny_unet(), Pipeline(plain).scheduler, None, None]
    pipe = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    with pytest.raises(DataError, match="without text_encoder, so that nothing reads its prompts"):
        check_prompts(pipe, ["a cat"], {})
