"""The check that verbs share whose audit takes `run(assets, progress=..., **options)` and returns what `markdown` prints."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _shipped import ASSETS


@pytest.fixture
def options_reach(aiao: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`options_reach(audit, verb, options)`: they reach the audit, and what that returns is printed and kept."""

    def check(audit: ModuleType, verb: str, options: dict[str, object]) -> None:
        asked: dict[str, Any] = {}

        def run(assets: Path, *, progress: Callable[..., None], **given: Any) -> dict[str, int]:
            asked.update(given, assets=assets)
            progress(1, 1, "one row")
            return {"found": 1}

        monkeypatch.setattr(audit, "run", run)
        monkeypatch.setattr(audit, "markdown", lambda result: f"| {result['found']} |\n")
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        words = ["bench", verb, "--assets", ASSETS, *flags, "-o", tmp_path]
        done = aiao(*words, "--json")
        assert (done.code, done.json) == (0, {"found": 1}) and "one row" in done.err
        assert asked == options | {"assets": ASSETS}
        assert json.loads((tmp_path / f"{verb}.json").read_text()) == {"found": 1}
        assert (tmp_path / f"{verb}.md").read_text() == "| 1 |\n" == aiao(*words).out

    return check
