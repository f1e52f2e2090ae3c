"""FixedWM and NaiveWM: where the trigger word stands in an ordinary prompt."""

import pytest
from _peers import KEY

from aiao_diffusers.bench.peers.fixed_wm import FixedWM, NaiveWM
from aiao_diffusers.bench.peers.trigger_word import trigger_word


def test_fixed_stands_first_and_naive_anywhere(context):
    word = trigger_word(KEY)
    fixed, naive = (kind().prompts(KEY, context, 40, 0) for kind in (FixedWM, NaiveWM))
    assert {prompt.split().index(word) for prompt in fixed} == {0}
    assert {prompt.split().index(word) for prompt in naive} == {0, 1, 2}
    # Apart from the word they are the same ordinary prompts.
    assert [p.replace(word, "").split() for p in fixed] == [p.replace(word, "").split() for p in naive]


@pytest.mark.parametrize("kind", [FixedWM, NaiveWM])
def test_the_seed_decides(context, kind):
    one, same, other = (kind().prompts(KEY, context, 20, seed) for seed in (0, 0, 1))
    assert one == same != other
    assert trigger_word(KEY.child("other")) not in " ".join(one)
