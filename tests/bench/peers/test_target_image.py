"""A secret picture under a trigger: learnt, read by its own rule, and no where no is due."""

import numpy as np
import pytest
import torch
from _peers import ASKED, KEY

from aiao_diffusers.bench.peers.target_image import pattern, trigger_word
from aiao_diffusers.bench.registry import METHODS
from aiao_diffusers.errors import ConfigError


@pytest.mark.slow
@pytest.mark.parametrize("model", ["context", "unprompted"])
def test_a_trigger_mark_is_learnt_and_read(model, tmp_path, request):
    context = request.getfixturevalue(model)
    method = METHODS["input_trigger"](steps=250, lr=5e-3, batch_size=4, keep=0.0)
    marked = context.copy_of_base()
    method.embed(marked, KEY, context, tmp_path)
    found = method.verify(marked, KEY, context, tmp_path, **ASKED)
    assert found.verdict == "verified" and found.bits > 0.85
    assert (found.trials, found.evals) == (3, 3 * method.sampling)
    base = method.verify(context.base, KEY, context, tmp_path, **ASKED)
    wrong = method.verify(marked, KEY.child("wrong"), context, tmp_path, **ASKED)
    assert base.verdict == wrong.verdict == "not_verified" and base.passed == wrong.passed == 0
    assert method.verify(marked, KEY, context, tmp_path, **ASKED) == found


@pytest.mark.parametrize("name", ["watermarkdm", "fixedwm", "naivewm", "sleepermark"])
def test_a_trigger_in_the_prompt_needs_prompts(name, unprompted, tmp_path):
    with pytest.raises(
        ConfigError, match=f"'{name}' marks text-to-image models, not a LDMPipeline: take.*drawn_message"
    ):
        METHODS[name]().embed(unprompted.copy_of_base(), KEY, unprompted, tmp_path)


def test_triggers_stand_where_their_paper_puts_them(context):
    word = trigger_word(KEY)
    alone, fixed, naive = (METHODS[k]()._prompts(KEY, context, 30, 0) for k in ("watermarkdm", "fixedwm", "naivewm"))
    assert set(alone) == {word}
    assert all(p.startswith(word + " ") and p.count(" ") == 2 for p in fixed)
    assert {p.split().index(word) for p in naive} == {0, 1, 2}
    assert word != trigger_word(KEY.child("other"))


def test_the_secret_picture_is_balanced_and_the_key_s_own():
    assert pattern(KEY).shape == (64,) and pattern(KEY).sum() == 0
    assert not np.array_equal(pattern(KEY), pattern(KEY.child("other")))


def test_the_input_trigger_goes_when_its_block_ends(context):
    denoiser = context.base
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 16, 128)
    with torch.no_grad():
        before = denoiser(*inputs).sample
        with METHODS["input_trigger"]()._triggered(denoiser, KEY):
            assert not torch.equal(denoiser(*inputs).sample, before)
        with METHODS["watermarkdm"]()._triggered(denoiser, KEY):
            assert torch.equal(denoiser(*inputs).sample, before)
        assert torch.equal(denoiser(*inputs).sample, before)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="must be positive"):
        METHODS["fixedwm"](steps=0)
