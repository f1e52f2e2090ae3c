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


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_says_what_hangs_on_its_prompt_and_its_seed(name):
    family = FAMILIES[name]
    pipe = family.build()
    first, again, other = (latents(pipe, family, PROMPTS, seed) for seed in (0, 0, 1))
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


@pytest.mark.parametrize("name", sample(FAMILIES, 6))
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
    drawn = loaded(**family.keywords(PROMPTS), num_inference_steps=2, output_type="pt")[0]
    assert len(drawn) == 3


def test_names_are_unique():
    assert len(FAMILIES) == len(ALL)


def test_words_are_one_token_each_and_all_else_is_bytes():
    vocabulary = text.tokenizer(text.DESCRIBE, eos=None)
    assert len(vocabulary(text.DESCRIBE).input_ids) == 34  # as Qwen's own, which its pipelines cut off by this count
    assert len(vocabulary("a red fox").input_ids) == 3
    assert vocabulary.decode(vocabulary("a zebra, é").input_ids) == "a zebra, é"
    assert vocabulary.unk_token_id is None
    assert text.clip_tokenizer()("a red fox").input_ids[-1] == text.clip_tokenizer().pad_token_id


def test_constant_parameters_get_noise_and_the_global_generator_stays():
    state = torch.get_rng_state()
    norm = seeded(torch.nn.LayerNorm, normalized_shape=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert norm.bias.std() > 0 and torch.equal(norm.bias, seeded(torch.nn.LayerNorm, normalized_shape=8).bias)
