"""The command as a user runs it, in this process: exit code and both streams, without the seconds that imports take."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aiao_diffusers import WatermarkKey
from aiao_diffusers.cli import main


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON value and nothing else."""
        return json.loads(self.out)

    def refused(self, error: str, *parts: object) -> None:
        """Exit code 1, and a last line that names the error, and what of the input and of the fix is in `parts`."""
        assert self.code == 1, self.err
        last = self.err.splitlines()[-1]  # progress bars may stand above
        assert last.startswith(f"error: {error}: ") and "Traceback" not in self.err, self.err
        assert all(str(part) in last for part in parts), last


@pytest.fixture
def aiao(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def run(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["aiao", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return Answer(stop.value.code or 0, *capfd.readouterr())  # type: ignore[arg-type]

    return run


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The demo key, in a file of this test's own."""
    return WatermarkKey(bytes(range(32)), "Demo").save(tmp_path / "a.key")
