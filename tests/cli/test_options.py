"""The end of a verb's help."""

import pytest

from aiao_diffusers.cli._options import EXIT_CODES, epilog, parse_pipeline_options
from aiao_diffusers.errors import ConfigError


def test_it_shows_the_example_and_the_codes_in_order():
    text = epilog("aiao keygen -o a.key")
    assert text.startswith("Example: aiao keygen -o a.key\n") and "--debug" in text
    assert "Exit codes: 0 done, 1 error, 2 usage error." in text


def test_a_verbs_own_codes_join_and_win():
    text = epilog("aiao verify x", {4: "not testable", 0: "verified", 3: "did not verify"})
    assert "0 verified, 1 error, 2 usage error, 3 did not verify, 4 not testable." in text
    assert EXIT_CODES == {0: "done", 1: "error", 2: "usage error"}  # what was shared is as it was


def test_pipeline_options_are_json_else_texts():
    found = parse_pipeline_options(["height=512", "negative=a=b", "guidance_scale=1.5", "long=true"])
    assert found == {"height": 512, "negative": "a=b", "guidance_scale": 1.5, "long": True}


@pytest.mark.parametrize("text", ["height", "=3", "a b=1", ""])
def test_a_pipeline_option_without_name_or_value_is_refused(text):
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        parse_pipeline_options([text])
