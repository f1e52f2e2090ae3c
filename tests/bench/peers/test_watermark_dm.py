"""WatermarkDM: a trigger word alone is the prompt, and it is the key's own."""

from _peers import KEY

from aiao_diffusers.bench.peers.trigger_word import trigger_word
from aiao_diffusers.bench.peers.watermark_dm import WatermarkDM


def test_the_prompt_is_the_word_whatever_the_seed(context):
    assert WatermarkDM().prompts(KEY, context, 3, 0) == WatermarkDM().prompts(KEY, context, 3, 9)
    assert WatermarkDM().prompts(KEY, context, 3, 0) == [trigger_word(KEY)] * 3
    other = KEY.child("other")
    assert WatermarkDM().prompts(other, context, 1, 0) != WatermarkDM().prompts(KEY, context, 1, 0)


def test_an_unmarked_model_does_not_verify(context, tmp_path):
    found = WatermarkDM(sampling=2).verify(context.base, KEY, context, tmp_path, alpha=1e-6, trials=3, seed=0)
    assert found.verdict == "not_verified" and found.passed == 0
