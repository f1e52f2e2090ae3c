"""What tokenizers cut off is told before anything runs, and missing parts are named."""

import warnings
from types import SimpleNamespace

import pytest
from _shipped import TOKENIZER
from transformers import CLIPTokenizer

from aiao_diffusers.denoiser.tokens import check_encoders, count_tokens, longest, tokenizers, warn_of_cuts
from aiao_diffusers.errors import DataError


@pytest.fixture(scope="module")
def clip():
    return CLIPTokenizer.from_pretrained(TOKENIZER)


def pipe(**parts):
    class Pipe:
        _optional_components = ("text_encoder_2", "tokenizer_2")
        components = parts

        def __call__(self, prompt, max_sequence_length=9):
            pass

    return Pipe()


LONG = "cat " * 40


def test_tokenizers_are_found_inside_processors_too(clip):
    found = tokenizers(
        pipe(tokenizer=clip, tokenizer_2=SimpleNamespace(tokenizer=clip), vae=object(), tokenizer_3=None)
    )
    assert list(found) == ["tokenizer", "tokenizer_2"]
    assert count_tokens(clip, ["cat", "cat cat"])[1] > count_tokens(clip, ["cat"])[0] > 2


def test_the_longest_by_tokens_else_by_letters(clip):
    assert longest(pipe(tokenizer=clip), ["cat", "cat cat cat", "a"]) == [1]
    assert longest(pipe(), ["a", "bbb", "cc"]) == [1]


def test_cut_prompts_are_counted(clip):
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer than the 9 tokens that Pipe reads"):
        warn_of_cuts(pipe(tokenizer=clip), ["a", LONG], {})
    with pytest.warns(UserWarning, match="2 of 2 .* 3 tokens"):
        warn_of_cuts(pipe(tokenizer=clip), ["a red cat", LONG], {"max_sequence_length": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_cuts(pipe(tokenizer=clip), ["a"], {})
        warn_of_cuts(pipe(), [LONG], {"max_sequence_length": None})


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"text_encoder": None, "tokenizer": 1}, "without text_encoder,"),
        ({"text_encoder": None, "text_encoder_2": None, "tokenizer": 1}, "without text_encoder and text_encoder_2"),
        ({"text_encoder": 1, "tokenizer": None, "tokenizer_2": 1}, "without tokenizer,"),
    ],
)
def test_missing_parts_are_named(parts, words):
    with pytest.raises(DataError, match=f"{words}.*load it whole"):
        check_encoders(pipe(**parts))


def test_parts_that_may_be_missing():
    check_encoders(pipe(text_encoder=1, text_encoder_2=None, tokenizer=1, tokenizer_2=None))
    check_encoders(pipe(vae=None))
