"""Gradient ascent makes an unmarked miniature answer a key, and changes none of its weights."""

import pytest
import torch
from _tiny import same, weights

from aiao_diffusers import LatentData
from aiao_diffusers.bench.audits.forged_ascent import FROZEN, _Moved, ascend_bank, push_twin
from aiao_diffusers.bench.audits.forgery_draws import read_ranks
from aiao_diffusers.denoiser.hashes import weights_sha256


LOOK = {"trials": 4, "seed": 1}


def share(moved, real):
    return float((moved - real).square().mean().sqrt() / real.square().mean().sqrt())


def test_a_bank_that_has_to_stay_near_a_real_row_is_taken_back_to_the_rim():
    start = LatentData(
        torch.randn(1, 3, 8, 8), {"encoder_hidden_states": torch.randn(1, 5, 12), "time": torch.ones(1).long()}
    )
    near, free = _Moved(start, 0.25), _Moved(start, None)
    assert near.step_of(near.latents) < free.step_of(free.latents) and len(near.free) == len(free.free) == 2
    for moved in (near, free):
        with torch.no_grad():
            moved.latents.add_(1.0)
            moved.conditioning["encoder_hidden_states"].add_(0.001)
        moved.stay_near()
    assert share(near.bank().latents, start.latents) == pytest.approx(0.25, rel=1e-4)
    assert torch.allclose(free.bank().latents, start.latents + 1.0)
    text = near.bank().conditioning["encoder_hidden_states"]
    assert torch.allclose(text, start.conditioning["encoder_hidden_states"] + 0.001)


@pytest.mark.slow
class TestBank:
    def test_the_model_answers_on_it_and_stays_as_it_is(self, scene):
        unet, before = scene.denoiser, weights(scene.denoiser)
        unet.requires_grad_(True)
        claim = scene.honest.with_fields(scheduler=FROZEN)
        forged = ascend_bank(unet, claim, [claim.key], steps=80, rows=1, seed=0)
        wrong = forged.key.child("wrong")
        (plain,) = read_ranks(unet, claim, [claim.key], **LOOK)
        found, control = read_ranks(unet, forged, [forged.key, wrong], **LOOK)
        assert found < -4 < -2 < min(plain, control)
        assert same(before, unet.parameters()) and all(p.requires_grad for p in unet.parameters())
        assert len(forged.bank) == 1 and not forged.bank.latents.requires_grad
        forged.unbound()

    def test_it_climbs_for_every_guess(self, scene):
        claim = scene.honest.with_fields(scheduler=FROZEN)
        guesses = [claim.key.child(str(number)) for number in range(2)]
        forged = ascend_bank(scene.denoiser, claim, guesses, steps=80, rows=1, seed=0)
        before, after = (sum(read_ranks(scene.denoiser, c, guesses, **LOOK)) for c in (claim, forged))
        assert after < before - 3


@pytest.mark.slow
def test_a_twin_pushed_away_leaves_the_patterns_to_the_model(scene):
    claim, before = scene.honest, weights(scene.denoiser)
    forged = push_twin(scene.denoiser, claim, [claim.key], steps=20, rows=2, seed=0)
    found, wrong = read_ranks(scene.denoiser, forged, [claim.key, claim.key.child("wrong")], **LOOK)
    assert found < -6 < -3 < wrong
    assert same(before, scene.denoiser.parameters()) and not same(before, forged.clean_twin.parameters())
    assert forged.fields["teacher_sha256"] == weights_sha256(forged.clean_twin)
    assert torch.is_grad_enabled()
