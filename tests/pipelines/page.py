"""Print docs/models.md: what is learnt of every miniature pipeline, and how those that were marked read.

python -m tests.pipelines.page > docs/models.md     # about twenty minutes on one core
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any

from diffusers.utils import logging

from aiao_diffusers.files.text import markdown_table

from . import FAMILIES
from .captured import table
from .end_to_end import NAMES, READS, run


INTRO = """# Models that were tried

Every pipeline here is the stock class of diffusers with the stock classes of its parts, at miniature size and with random weights: what is learnt of it holds for the
published models of its family, their size and their weights aside. `python -m tests.pipelines.page` prints this page.

A family that is not named may work as well: the library knows no family by name. It runs a pipeline for a few steps, learns how its denoiser is called, and refuses
where replaying the call does not give what the scheduler was given.

## How a denoiser is called

`times`: what the denoiser is told at the scheduler's time t. `rows`: conditioning of which each picture has its own; `shared`: what all have in common. `given`: what the
pipeline is called with so that it runs unguided. `replay`: largest difference of a replayed prediction, as a share of the largest value of the prediction.
"""
MARKED = f"""
## Marked, saved, loaded and read

{READS} steps of 4 on eight prompts, one key, log10 p by plain looks over 8 trials; `LoRA`: rank 2, {READS // 3} steps, read on the marked model. Wrong key and clean twin
are the controls. A miniature with random weights has few sites and no room to spare: its price says nothing of a real model's.
"""
COLUMNS = ("family", "sites", "marked", "LoRA", "wrong key", "clean twin", "price")


def describe_mark(name: str) -> list[str]:
    """A row of the second table."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run(name, Path(folder), READS)
    told: list[Any] = [found.log10_p[suspect] for suspect in ("marked", "lora", "wrong key", "clean twin")]
    return [name, str(found.sites), *("" if p is None else f"{p:.1f}" for p in told), f"{found.price:.1%}"]


if __name__ == "__main__":
    logging.set_verbosity_error()
    rows = [describe_mark(name) for name in NAMES]
    print(INTRO, table(list(FAMILIES)), MARKED, markdown_table(COLUMNS, rows), sep="\n")
