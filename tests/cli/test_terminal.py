"""The terminal is ours: no line of another library reaches it, and what we call does not make them speak."""

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from _shipped import ASSETS

from aiao_diffusers.cli._terminal import own_terminal
from aiao_diffusers.formats.checkpoint import load_denoiser


ROOT = Path(__file__).parents[2]


def fresh(*words: object) -> tuple[int, str, str]:
    """`(exit code, stdout, stderr)` of the command in a fresh process, where every library has yet to be imported."""
    program = "from aiao_diffusers.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)  # set for tests, not for users
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_verify_says_nothing_but_its_report(key):
    words = ("--base", ASSETS / "marked", "--record", ASSETS / "marked", "--key", key)
    code, text, remarks = fresh("verify", ASSETS / "lora", *words)
    assert (code, remarks) == (0, "") and text.startswith("# verified")


@pytest.mark.slow
def test_embed_and_what_it_warns_of(key, tmp_path):
    """It loads a whole pipeline, as the demo does: bars, image processors and casts."""
    words = ("--steps", 1, "--data", ASSETS / "latents" / "noto.safetensors", "--json")
    code, text, remarks = fresh("embed", ASSETS / "base", "--key", key, "-o", tmp_path / "marked", *words)
    assert code == 0 and json.loads(text)["output"] == str(tmp_path / "marked")
    (line,) = remarks.splitlines()  # one step is too few
    assert line.startswith("warning: the mark is too weak to be verified")


def test_loading_in_another_precision_makes_diffusers_say_nothing(caplog):
    """Of the library too, whose users see all that diffusers says."""
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        loaded = load_denoiser(ASSETS / "marked", dtype=torch.float16)
        assert caplog.records == [] and {p.dtype for p in loaded.parameters()} == {torch.float16}
        loaded.to(torch.float32)  # what was called before
        assert "should be kept in float32" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


class TestOwnTerminal:
    def test_all_is_put_back(self):
        def state():
            return dict(os.environ), logging.root.manager.disable, warnings.formatwarning, list(warnings.filters)

        before = state()
        with pytest.raises(ValueError), own_terminal():
            assert os.environ["TQDM_DISABLE"] == "1" and logging.root.manager.disable == logging.WARNING
            raise ValueError
        assert state() == before

    def test_ours_is_one_line_and_others_are_silent(self, recwarn):
        with own_terminal():
            assert warnings.formatwarning("two\nlines", UserWarning, "x.py", 1) == "warning: two lines\n"
            warnings.warn_explicit("ours", UserWarning, "x.py", 1, module="aiao_diffusers.mark.key")
            warnings.warn_explicit("noise", FutureWarning, "y.py", 1, module="diffusers.utils")
        assert [str(seen.message) for seen in recwarn] == ["ours"]
