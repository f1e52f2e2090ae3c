"""The command starts at once, and so does the library: what is heavy is imported when it is used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import aiao_diffusers


ROOT = Path(aiao_diffusers.__file__).parents[1]
HEAVY = {"torch", "diffusers", "transformers", "numpy", "scipy", "huggingface_hub", "accelerate", "peft", "matplotlib"}


def imported(code: str) -> set[str]:
    """Top-level packages in a fresh process after `code`."""
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(*sys.modules, file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    return {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import aiao_diffusers",
        "import aiao_diffusers; dir(aiao_diffusers); aiao_diffusers.__all__; aiao_diffusers.errors",
        "from aiao_diffusers.cli import app; app(['--help'])",
        "from aiao_diffusers.cli import app; app(['--version'])",
        "from aiao_diffusers.cli import app; app(['--show-completion', 'bash'])",
        "from aiao_diffusers.cli import app; app(['verify', '--help'])",
        "from aiao_diffusers.cli import app; app(['bench', '--help'])",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(code):
    assert imported(code) & HEAVY == set()


@pytest.mark.slow
def test_a_heavy_import_would_be_seen():
    assert {"torch", "numpy"} <= imported("from aiao_diffusers import LatentData")


class TestPublicNames:
    def test_each_is_what_its_home_defines(self):
        for name in aiao_diffusers.__all__:
            value = getattr(aiao_diffusers, name)
            assert value.__module__ == f"aiao_diffusers.{aiao_diffusers._HOMES[name]}" and value.__name__ == name

    def test_all_are_listed(self):
        assert set(aiao_diffusers.__all__) == set(aiao_diffusers._HOMES)
        assert set(aiao_diffusers.__all__) | {"errors", "data", "record", "cards"} <= set(dir(aiao_diffusers))

    def test_every_package_is_reached_and_none_shadows_a_name(self):
        folder = Path(aiao_diffusers.__file__).parent
        found = {path.stem for path in folder.glob("*.py")} | {
            path.parent.name for path in folder.glob("*/__init__.py")
        }
        found -= {"__init__", "aiao_diffusers", "hub_cards"}
        assert found == aiao_diffusers._MODULES
        assert not found & set(aiao_diffusers.__all__)
        assert all(getattr(aiao_diffusers, name).__name__ == f"aiao_diffusers.{name}" for name in found)

    def test_a_star_import_brings_them(self):
        names: dict[str, object] = {}
        exec("from aiao_diffusers import *", names)
        assert set(aiao_diffusers.__all__) <= set(names)

    def test_another_name_is_no_attribute(self):
        assert not hasattr(aiao_diffusers, "verification_of")
        with pytest.raises(AttributeError, match="'nothing'"):
            getattr(aiao_diffusers, "nothing")  # noqa: B009
        with pytest.raises(ImportError, match="nothing"):
            exec("from aiao_diffusers import nothing")

    def test_type_checkers_see_the_same_homes(self):
        import ast

        tree = ast.parse(Path(aiao_diffusers.__file__).read_text())
        (block,) = [node for node in tree.body if isinstance(node, ast.If)]
        seen = {alias.name: node.module for node in block.body for alias in node.names}  # type: ignore[attr-defined]
        assert seen == aiao_diffusers._HOMES
