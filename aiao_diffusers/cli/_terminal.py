"""The terminal is ours while a verb runs: other libraries say nothing, and a warning of ours is one line."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


# Read when tqdm and huggingface_hub are imported: loading bars of diffusers, transformers and the Hub's client.
_NO_BARS = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
_OTHERS = r"(?!aiao_diffusers\b)"


def _one_line(message: Warning | str, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
    return f"warning: {' '.join(str(message).splitlines())}\n"


@contextmanager
def own_terminal() -> Iterator[None]:
    """Silence other libraries for the length of the block, in this process alone; all is put back at its end.

    Their errors still show. Whoever imports `aiao_diffusers` as a library sees everything, as with `--debug`.
    """
    kept = {name: os.environ.get(name) for name in _NO_BARS}
    level, form = logging.root.manager.disable, warnings.formatwarning
    with warnings.catch_warnings():
        try:
            os.environ.update(_NO_BARS)
            logging.disable(logging.WARNING)
            warnings.filterwarnings("ignore", module=_OTHERS)
            warnings.formatwarning = _one_line
            yield
        finally:
            warnings.formatwarning = form
            logging.disable(level)
            for name, value in kept.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
