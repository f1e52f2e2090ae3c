"""Triggers in the prompt: where they stand, and which models take none."""

import pytest
from _peers import KEY

from aiao_diffusers.bench.peers.trigger_word import trigger_word
from aiao_diffusers.bench.registry import METHODS
from aiao_diffusers.errors import ConfigError


@pytest.mark.parametrize("name", ["watermarkdm", "fixedwm", "naivewm", "sleepermark"])
def test_a_trigger_in_the_prompt_needs_prompts(name, unprompted, tmp_path):
    with pytest.raises(
        ConfigError, match=f"'{name}' marks text-to-image models, not a LDMPipeline: take.*drawn_message"
    ):
        METHODS[name]().embed(unprompted.copy_of_base(), KEY, unprompted, tmp_path)


def test_triggers_stand_where_their_paper_puts_them(context):
    word = trigger_word(KEY)
    alone, fixed, naive = (METHODS[k]().prompts(KEY, context, 30, 0) for k in ("watermarkdm", "fixedwm", "naivewm"))
    assert set(alone) == {word}
    assert all(p.startswith(word + " ") and p.count(" ") == 2 for p in fixed)
    assert {p.split().index(word) for p in naive} == {0, 1, 2}
    assert word != trigger_word(KEY.child("other"))
