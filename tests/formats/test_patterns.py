"""A stranger's patterns: the answers of `re` as peft asks it, in bounded time."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiao_diffusers.errors import NotTestableError
from aiao_diffusers.formats.patterns import matcher


NAMES = (
    "conv_in",
    "down_blocks.0.attentions.1.transformer_blocks.10.attn1.to_q",
    "up_blocks.1.resnets.0.conv1",
    "mid_block.attentions.0.proj_in",
    "to_q",
    "ab",
    "aab.b",
    "",
)
PATTERNS = (
    "to_q",
    "attn1.to_q",
    r"attn1\.to_q",
    "^conv_in",
    "conv_in$",
    r".*\.attn[12]\.to_[qkv]",
    r"(?:down|up)_blocks\.\d+\..*",
    r"transformer_blocks\.(1\d|20)\.attn1\.to_q",
    r"down_blocks\.[0-9]+\.[^.]+\.1\..*?to_q",
    r"a{1,2}b",
    r"a{2}b?(\.b)?",
    "to_(q|k|v)|conv1",
    r"[\w.]+q",
    "",
    "a*b*",
    "x|",
)


def as_peft(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", NAMES)
def test_as_peft_reads_them(pattern, name):
    assert matcher(pattern)(name) is as_peft(pattern, name)


ATOMS = st.sampled_from(["a", "b", r"\.", ".", "[ab]", "[^a.]", r"\d", r"\w", "1", "(?:a|b1)", "(ab|)", "^", "$"])
PIECES = st.tuples(ATOMS, st.sampled_from(["", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?"])).map("".join)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(pattern=st.lists(PIECES, max_size=6).map("".join), name=st.text("ab1.", max_size=10))
def test_any_pattern_of_the_subset(pattern, name):
    try:
        expected = as_peft(pattern, name)
    except re.error:  # a repeated anchor
        return
    assert matcher(pattern)(name) is expected


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|a)*b*" + "c*" * 8,
        "a" * 200 + "*",
        "(?=a)b",
        r"(a)\1",
        "(?i)a",
        "a**",
        "(a",
        "a)",
        "[a",
        "*a",
        "a{x}",
    ],
)
def test_what_is_not_followed_is_refused(pattern):
    with pytest.raises(NotTestableError, match="in the adapter config"):
        matcher(pattern)


def test_a_pattern_that_backtracks_for_years_in_re_takes_no_time():
    hostile = "(a|aa|a?)" * 12 + "(a|b|ab)*c"
    started = time.process_time()
    assert not matcher(hostile)("a" * 60 + "." + "a" * 60)
    assert time.process_time() - started < 1
