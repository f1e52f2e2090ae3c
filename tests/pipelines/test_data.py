"""Pictures with captions, and prompts alone, for every family: latents are those that the pipeline itself decodes."""

from functools import partial
from typing import Any

import pytest
import torch
from _kind import sample
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from aiao_diffusers.denoiser.call import evaluate
from aiao_diffusers.denoiser.encode import is_classic, prepare
from aiao_diffusers.denoiser.inputs import LatentData
from aiao_diffusers.denoiser.latents import autoencoder, posterior_mean, replaced
from aiao_diffusers.denoiser.request import scheduler_config
from aiao_diffusers.denoiser.schedule import noise_schedule
from aiao_diffusers.denoiser.setup import denoiser_of
from aiao_diffusers.errors import AIAOError
from tests.pipelines import FAMILIES
from tests.pipelines.family import Family


CAPTIONS = ("a red fox", "two cats on grass")
PICTURES = [name for name, family in FAMILIES.items() if not family.video]
VIDEOS = [name for name, family in FAMILIES.items() if family.video]
REFUSED = {
    "kandinsky_2_2": "takes no captions",
    "dit": "takes no captions",
    "stable_cascade": "no autoencoder",
    "lumina_next": "no valid argument: 'cross_attention_kwargs",
    "cosmos_2": "the noise of a .* is of no known kind",
}
"""Families of pictures that take none, and why."""
NO_PROMPTS = {
    "kandinsky_2_2": "takes no prompts",
    "ddpm": "takes no prompts",
    "dit": "takes no prompts",
    "stable_cascade": "no denoiser that a scheduler drives",
    "lumina_next": "no valid argument: 'cross_attention_kwargs",
    "cosmos": "the noise of a .* is of no known kind",
    "cosmos_2": "the noise of a .* is of no known kind",
    "ltx_2": "'audio_hidden_states' changes from step to step",
}
"""Families whose prompts alone make no data, and why."""


def pictures(size: tuple[int, int]) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(CAPTIONS), size[1], size[0], 3)
    return [Image.fromarray(row.numpy()) for row in torch.randint(256, shape, generator=generator, dtype=torch.uint8)]


def options(family: Family, pipe: Any) -> dict[str, Any] | None:
    """What keeps the pipeline small; those of Stable Diffusion's kind need nothing."""
    return None if is_classic(pipe) else {n: v for n, v in family.options.items() if n not in family.rows}


def check_replay(pipe: Any, data: LatentData) -> None:
    """What `evaluate` makes of the data is finite and hangs on the conditioning."""
    schedule = noise_schedule(scheduler_config(pipe))
    step = torch.full((len(data),), schedule.steps // 2)
    noised = schedule.add_noise(data.latents, torch.randn(data.latents.shape), step)
    with torch.no_grad():
        predicted = evaluate(denoiser_of(pipe), noised, schedule.level(step), data.keywords())
        # The same noise under the other caption.
        swapped = evaluate(denoiser_of(pipe), noised, schedule.level(step), data.take(torch.tensor([1, 0])).keywords())
    assert len(predicted) == len(data) and predicted.isfinite().all()
    if data.conditioning:
        assert (predicted - swapped).abs().max() > 1e-4 * predicted.abs().max()


def decoded(pipe: Any, family: Family, latents: torch.Tensor) -> torch.Tensor:
    """What the pipeline gives its autoencoder when its scheduler arrives at `latents`."""
    heard = []

    def step(original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        return (latents,) * len(result) if isinstance(result, tuple) else type(result)(prev_sample=latents)

    def decode(original: Any, given: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        heard.append(given.clone())
        return original(given, *args, **kwargs)

    with replaced(pipe.scheduler, "step", step), replaced(autoencoder(pipe), "decode", decode):
        pipe(**family.keywords(CAPTIONS), num_inference_steps=3, generator=torch.Generator().manual_seed(0))
    return torch.cat(heard)


@pytest.mark.slow
@pytest.mark.parametrize("name", sample([name for name in PICTURES if name not in REFUSED], 12))
def test_pictures_are_the_latents_that_the_pipeline_decodes(name):
    family = FAMILIES[name]
    pipe = family.build()
    side = 8 if autoencoder(pipe) is None else 32 if name in ("bria_fibo", "cosmos_2") else 64
    drawn = pictures((side, side))
    data = prepare(pipe, list(zip(drawn, CAPTIONS, strict=True)), options=options(family, pipe))
    assert len(data) == len(CAPTIONS)
    check_replay(pipe, data)
    pixels = VaeImageProcessor(vae_scale_factor=1).preprocess(drawn)
    if autoencoder(pipe) is None:
        assert torch.equal(data.latents, pixels)
        return
    made = decoded(pipe, family, data.latents)
    with torch.no_grad():
        rows = pixels.split(1)
        encode = autoencoder(pipe).encode
        own = torch.cat([posterior_mean(encode(row if made.ndim == 4 else row.unsqueeze(2))) for row in rows])
    assert (made - own).abs().max() < 2e-6 * own.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "kind"),
    [(*each, "pictures") for each in REFUSED.items()] + [(*each, "prompts") for each in NO_PROMPTS.items()],
)
def test_families_that_make_no_data_say_why(name, words, kind):
    family = FAMILIES[name]
    pipe = family.build()
    rows = list(zip(pictures((64, 64)), CAPTIONS, strict=True)) if kind == "pictures" else CAPTIONS
    with pytest.raises(AIAOError, match=words):
        prepare(pipe, rows, options=options(family, pipe))


@pytest.mark.parametrize("name", sample(VIDEOS, 3))
def test_videos_take_no_pictures_and_do_not_run_to_say_so(name, monkeypatch):
    family = FAMILIES[name]
    pipe = family.build()
    monkeypatch.setattr(pipe.scheduler, "set_timesteps", partial(pytest.fail, "the pipeline ran"))
    with pytest.raises(AIAOError, match=f"{type(pipe).__name__} draws videos.*pass prompts, or LatentData"):
        prepare(pipe, [(pictures((32, 32))[0], "a red fox")], options=dict(family.options))


@pytest.mark.slow
@pytest.mark.parametrize("name", sample([name for name in FAMILIES if name not in NO_PROMPTS], 6))
def test_prompts_alone_make_latents(name):
    family = FAMILIES[name]
    pipe = family.build()
    data = prepare(pipe, list(CAPTIONS), options=options(family, pipe))
    assert len(data) == len(CAPTIONS)
    check_replay(pipe, data)
