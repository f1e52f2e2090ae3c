"""Which run of the tests this is, by two environment variables.

`AIAO_TESTS=full`: every case of every sweep (`make test-full`); else a sample with a fixed seed.
`AIAO_WITHOUT_EXTRAS=1`: only the required packages are installed; a test that asks for an extra is skipped. In every other
run a skipped test fails.
"""

import importlib
import os
import random
from collections.abc import Iterable
from typing import Any, TypeVar

import pytest


Case = TypeVar("Case")
FULL = os.environ.get("AIAO_TESTS") == "full"
WITHOUT_EXTRAS = os.environ.get("AIAO_WITHOUT_EXTRAS") == "1"


def sample(cases: Iterable[Case], count: int, seed: int = 0) -> list[Case]:
    """All cases in the full run; else `count` of them, in their order."""
    cases = list(cases)
    if FULL or count >= len(cases):
        return cases
    return [cases[i] for i in sorted(random.Random(seed).sample(range(len(cases)), count))]


def extra(module: str) -> Any:
    """An optional package for a whole test file: skipped where extras are left out on purpose, an error elsewhere."""
    return pytest.importorskip(module) if WITHOUT_EXTRAS else importlib.import_module(module)
