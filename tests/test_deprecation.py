"""Former names warn, name the present one, and reach the same place."""

import inspect
import warnings

import pytest

from aiao_diffusers.deprecation import renamed_arguments, renamed_attribute, warn_renamed
from aiao_diffusers.errors import ConfigError


@renamed_arguments(clean_base="controls", twin="clean_twin")
def read(suspect, key, controls=None, *, clean_twin=None):
    """What it does."""
    return suspect, key, controls, clean_twin


class Report:
    price = 0.004
    fidelity = renamed_attribute("fidelity", "price")


def test_a_former_keyword_warns_at_the_callers_line_and_is_forwarded():
    with pytest.warns(FutureWarning, match=r"clean_base= is now controls=") as seen:
        assert read(1, 2, clean_base=3) == (1, 2, 3, None)
    assert seen[0].filename == __file__
    with pytest.warns(FutureWarning) as seen:
        assert read(1, key=2, twin=4, clean_base=None) == (1, 2, None, 4)
    assert len(seen) == 2


def test_present_names_are_silent_by_keyword_and_by_position():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(1, 2, 3) == (1, 2, 3, None)
        assert read(suspect=1, key=2, controls=3, clean_twin=4) == (1, 2, 3, 4)


@pytest.mark.parametrize("arguments", [(1, 2, 3), (1, 2)])
def test_both_names_at_once_are_refused(arguments):
    given = {} if len(arguments) == 3 else {"controls": None}
    with pytest.raises(ConfigError, match=r"controls= and clean_base="):
        read(*arguments, clean_base=3, **given)


def test_signature_name_and_docstring_are_the_functions_own():
    assert list(inspect.signature(read).parameters) == ["suspect", "key", "controls", "clean_twin"]
    assert (read.__name__, read.__doc__) == ("read", "What it does.")


def test_an_unknown_keyword_is_still_refused():
    with pytest.raises(TypeError, match="control_base"):
        read(1, 2, control_base=3)


def test_a_name_that_is_passed_on_may_be_renamed():
    @renamed_arguments(twin="clean_twin")
    def forward(*, quiet=False, **kwargs):
        return kwargs

    with pytest.warns(FutureWarning):
        assert forward(twin=1) == {"clean_twin": 1}


@pytest.mark.parametrize("names", [{"old": "missing"}, {"key": "suspect"}])
def test_a_renaming_that_does_not_fit_the_function_is_refused_at_once(names):
    with pytest.raises(TypeError, match="cannot rename"):
        renamed_arguments(**names)(lambda suspect, key: None)


def test_a_former_attribute_reads_the_present_one():
    with pytest.warns(FutureWarning, match=r"Report\.fidelity is now price") as seen:
        assert Report().fidelity == 0.004
    assert seen[0].filename == __file__


def test_a_warning_blames_its_caller():
    with pytest.warns(FutureWarning, match="a is now b") as seen:
        warn_renamed("a", "b")
    assert seen[0].filename == __file__
