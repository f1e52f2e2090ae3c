"""Every error is of one family, and of the builtin class that a caller may already catch."""

import inspect

import pytest

from aiao_diffusers import AIAOError, errors


FAMILY = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


def test_the_family_is_whole():
    assert errors.AIAOError is AIAOError and len(FAMILY) > 20
    assert all(issubclass(kind, AIAOError) and (inspect.getdoc(kind) or "").endswith(".") for kind in FAMILY)


@pytest.mark.parametrize("kind", [kind for kind in FAMILY if kind is not AIAOError], ids=lambda kind: kind.__name__)
def test_a_builtin_base_catches_it(kind):
    with pytest.raises((ValueError, OSError, ImportError, RuntimeError), match="the value and the fix"):
        raise kind("the value and the fix")
    assert not issubclass(kind, KeyboardInterrupt | MemoryError | SystemExit)


def test_what_is_not_testable_is_no_misuse():
    """`verify` turns this class, and no other, into a verdict."""
    assert issubclass(errors.LoraNotLoadedError, errors.NotTestableError)
    assert not issubclass(errors.SuspectError, errors.NotTestableError)
    assert not issubclass(errors.ConfigError, errors.NotTestableError)
