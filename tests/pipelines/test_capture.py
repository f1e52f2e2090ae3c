"""Every family's call is learnt and replays, from a file too; those that are refused say why."""

import pytest
import torch
from _kind import sample

from aiao_diffusers import LatentData
from aiao_diffusers.denoiser.call import DenoiserCall, prediction
from aiao_diffusers.denoiser.capture import capture_rows
from aiao_diffusers.denoiser.derivation import TOLERANCE
from aiao_diffusers.denoiser.request import scheduler_config
from aiao_diffusers.denoiser.schedule import noise_schedule
from aiao_diffusers.errors import AIAOError

from . import FAMILIES
from .captured import REFUSED, SECOND, capture, table


LEARNT = [name for name in FAMILIES if name not in REFUSED]
TEXTS = [name for name in LEARNT if FAMILIES[name].prompted]
PROMPTS = ["a red fox", "two cats on a long and winding mat in the sun", "rain", "a", "blue"]
DRAWN = {"glm_image"}
"""Families whose conditioning is drawn at random: tokens of a language model."""


def test_thirty_families_at_least():
    assert len(LEARNT) >= 30 and set(REFUSED) <= set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNT)
def test_a_call_is_learnt_and_replays_from_a_file(name, tmp_path, record_property):
    family = FAMILIES[name]
    pipe = family.build()
    for part in (None, *([SECOND[name]] if name in SECOND else [])):
        found = capture(family, pipe, part)
        record_property("replay", found.replay)
        assert found.replay <= 1e-5 and len(found.data) == 3
        call = DenoiserCall.from_json(found.call.to_json(), found.call.shared)
        assert call.to_json() == found.call.to_json()
        found.data.save(tmp_path / "data.safetensors", torch.float32)
        again = LatentData.load(tmp_path / "data.safetensors")
        assert again.call.to_json() == found.call.to_json()
        # Noised as training does it, at a time of the schedule's own.
        schedule = noise_schedule(scheduler_config(pipe))
        step = torch.tensor([schedule.steps // 2] * 3)
        noise = torch.randn(found.data.latents.shape, generator=torch.Generator().manual_seed(0))
        noised = schedule.add_noise(found.data.latents, noise, step)
        denoiser = getattr(pipe, found.denoiser)
        again.call.check_fits(denoiser)
        with torch.no_grad():
            one, other = (
                prediction(denoiser, noised, schedule.level(step), data.keywords()) for data in (found.data, again)
            )
        assert one.shape == noised.shape and one.isfinite().all()
        assert (one - other).abs().max() <= 1e-4 * one.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", sample(LEARNT, 8))
def test_half_precision_is_learnt_alike(name):
    family = FAMILIES[name]
    pipe = family.build()
    pipe.to(torch.bfloat16)
    found = capture(family, pipe)
    assert found.replay <= TOLERANCE[torch.bfloat16] and found.data.latents.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", sample(TEXTS, 8))
def test_prompts_of_many_lengths_are_conditioned_alike_in_any_batches(name):
    family = FAMILIES[name]
    pipe = family.build()
    found = capture(family, pipe)
    batches, whole = (capture_rows(pipe, PROMPTS, found, batch=batch) for batch in (2, len(PROMPTS)))
    assert batches.call.to_json() == whole.call.to_json() and len(batches) == len(PROMPTS)
    for key, value in whole.conditioning.items():
        assert batches.conditioning[key].shape == value.shape, key
        assert name in DRAWN or torch.allclose(batches.conditioning[key].float(), value.float(), atol=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_is_not_learnt_says_why(name):
    with pytest.raises(AIAOError, match=REFUSED[name]) as error:
        capture(FAMILIES[name], FAMILIES[name].build())
    assert len(str(error.value)) < 600


def test_the_table_says_how_each_is_called_and_why_others_are_refused():
    first, _, schnell, lumina, _, cosmos = table(["flux_1_schnell", "lumina_2", "cosmos"]).splitlines()
    assert first.startswith("| family | pipeline | scheduler | denoiser | times |")
    assert "| timestep = 0.001 t | +1 | encoder_hidden_states, pooled_projections | img_ids, txt_ids |" in schnell
    assert "| timestep = -0.001 t+1 | -1 |" in lumina and "| guidance_scale=1 |" in lumina
    assert cosmos.startswith("- cosmos: the noise of a 'EDMEulerScheduler'")
