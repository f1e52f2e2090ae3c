"""A benchmark's context around a miniature."""

from pathlib import Path

import pytest
from _tiny import tiny_context

from aiao_diffusers.bench.context import AttackContext


@pytest.fixture
def context(tmp_path: Path) -> AttackContext:
    return tiny_context(tmp_path)
