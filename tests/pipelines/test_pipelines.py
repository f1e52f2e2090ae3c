"""Every miniature pipeline runs, says something finite that hangs on the prompt, and says it again from the same seed."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from _kind import sample
from diffusers import DiffusionPipeline

from tests.pipelines import ALL, FAMILIES, text
from tests.pipelines.family import Family, seeded


PROMPTS = ("a red fox", "two cats", "blue car")


def latents(pipe: Any, family: Family, prompts: Sequence[str], seed: int = 0) -> torch.Tensor:
    """The last latents of two steps, or the pictures of a pipeline that gives no latents; a row for each prompt."""
    made = pipe(
        **family.keywords(prompts),
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    )[0]
    return torch.stack(list(made)) if isinstance(made, list) else torch.as_tensor(made)


@pytest.mark.slow
@pytest.mark.parametrize("name", sample(FAMILIES, 10))
def test_a_pipeline_says_what_hangs_on_its_prompt_and_its_seed_and_is_built_the_same(name):
    family = FAMILIES[name]
    pipe = family.build()
    first, other = (latents(pipe, family, PROMPTS, seed) for seed in (0, 1))
    again = latents(family.build(), family, PROMPTS)
    assert len(first) == len(PROMPTS)
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-2
    fewer = latents(pipe, family, PROMPTS[:2])
    assert fewer.shape[1:] == first.shape[1:] and len(fewer) == 2
    if family.prompted:
        changed = latents(pipe, family, (*PROMPTS[:2], "green boat"))
        assert torch.allclose(changed[:2], first[:2], atol=1e-4)
        assert (changed[2] - first[2]).abs().max() > 1e-3


@pytest.mark.parametrize("name", sample([name for name in FAMILIES if not FAMILIES[name].unloadable], 6))
def test_a_pipeline_is_saved_and_loaded_by_the_stock_class_and_draws_pictures(name, tmp_path):
    family = FAMILIES[name]
    pipe = family.build()
    pipe.save_pretrained(tmp_path)
    loaded = family.dress(DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is type(pipe)
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            state = getattr(loaded, part).state_dict()
            assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items()), part
    # Of the same weights, but mapped from a file: sums may round in another order.
    before = latents(pipe, family, PROMPTS)
    assert (latents(loaded, family, PROMPTS) - before).abs().max() < 1e-3 * before.abs().max()
    if not family.undrawable:
        drawn = loaded(**family.keywords(PROMPTS), num_inference_steps=2, output_type="pt")[0]
        assert len(drawn) == 3


def test_names_are_unique():
    assert len(FAMILIES) == len(ALL)


KINDS = {
    "CLIP's": (text.clip_tokenizer, "fox</w>"),
    "T5's": (text.t5_tokenizer, "\u2581fox"),
    "Gemma's": (text.gemma_tokenizer, "\u2581fox"),
    "Llama's": (text.llama_tokenizer, "\u0120fox"),
    "Qwen's": (text.chat_tokenizer, "\u0120fox"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_one_token_each_and_all_else_is_bytes(kind):
    make, form = KINDS[kind]
    vocabulary = make()
    assert form in vocabulary.tokenize("a red fox") and len(vocabulary.tokenize("a red fox")) == 3
    ids = [vocabulary(prompt).input_ids for prompt in (*PROMPTS, "a zebra, \u00e9", "a zebra, \u00e8")]
    assert len({tuple(row) for row in ids}) == len(ids)
    read = vocabulary.decode(ids[3], skip_special_tokens=True)
    assert read.replace(" ", "") == "azebra,\u00e9"  # CLIP's own leaves a space after each word


def test_a_template_has_as_many_tokens_as_its_pipelines_cut_off():
    vocabulary = text.chat_tokenizer(text.DESCRIBE, text.ENGINEER)
    assert [len(vocabulary(template).input_ids) for template in (text.DESCRIBE, text.ENGINEER)] == [34, 40]
    chat = vocabulary.apply_chat_template([{"role": "user", "content": "a red fox"}], tokenize=False)
    assert chat == "<|im_start|>user\na red fox<|im_end|>\n"


def test_constant_parameters_get_noise_and_the_global_generator_stays():
    state = torch.get_rng_state()
    norm = seeded(torch.nn.LayerNorm, normalized_shape=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert norm.bias.std() > 0 and torch.equal(norm.bias, seeded(torch.nn.LayerNorm, normalized_shape=8).bias)
