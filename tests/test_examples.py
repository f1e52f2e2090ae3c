"""What the examples import exists; they are run by hand, so nothing else would notice a rename."""

import ast
import importlib
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))


def imported(path: Path) -> list[tuple[str, str]]:
    """Module and name of every `from ... import ...` of ours or of the tests."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in nodes if (node.module or "").split(".")[0] in ("aiao_diffusers", "tests")]
    return [(str(node.module), alias.name) for node in ours for alias in node.names]


def test_there_are_imports_to_check():
    assert sum(len(imported(path)) for path in EXAMPLES) > 20


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_name_that_an_example_imports_exists(path):
    missing = [f"{m}.{name}" for m, name in imported(path) if not hasattr(importlib.import_module(m), name)]
    assert missing == []


def test_a_name_that_is_gone_is_seen(tmp_path):
    (tmp_path / "old.py").write_text("from aiao_diffusers.embedding.embed import fidelity\n")
    with pytest.raises(AssertionError, match="fidelity"):
        test_every_name_that_an_example_imports_exists(tmp_path / "old.py")
