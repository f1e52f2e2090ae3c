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
from .end_to_end import LORA_STEPS, NAMES, READS, run


INTRO = """# Mark any pipeline

```python
from aiao_diffusers import WatermarkedPipeline, WatermarkKey

pipe = WatermarkedPipeline.from_pretrained("acme/flow-model")  # of whatever class of diffusers it names
report = pipe.embed(WatermarkKey.load("lab.key"), "pictures/", pipeline_options={"height": 512, "width": 512})
pipe.save_pretrained("marked")  # stock classes load it
```

`aiao embed acme/flow-model --key lab.key -o marked --data pictures --pipeline-option height=512` does the same. `verify`, `scan`, `push`, `profile` and `bench` take such models as they take
Stable Diffusion.

- **Data.** A folder of pictures with captions, a list of `(picture, caption)`, prompts, cached latents, or nothing: the model then draws for words of its own tokenizer. Pictures go the
  pipeline's own way back from latents, which is learnt from one run. Models of videos take prompts or latents.
- **How the denoiser is called** is learnt as well: the pipeline runs for a few steps with two and with three prompts, and what was learnt counts only where replaying it gives what the
  scheduler was given. The library knows no family by name, so one that is not listed here may work, and one that is refused says why. Latents and records keep the call, bounded and under their hash.
- **Noise.** Betas and flow matching; other kinds (EDM, consistency models) are refused by name.
- **Two denoisers** (Wan 2.2): both are marked under the one key, so that one record reads either; `embed(denoiser="transformer_2")`, `--denoiser transformer_2` marks one.
- **Cost.** `pipeline_options` choose the size: what is learnt, sampled and trained on is of that size. Text encoders that pad to 512 tokens make every forward longer: where the pipeline has
  `max_sequence_length`, a smaller one is cheaper.

Not covered: pipelines that pass tensors into blocks (ControlNet residuals, attention keywords), conditioning that changes from step to step, frames folded into the batch, and denoisers whose
attention returns states of another rank. Nothing larger than a miniature was marked on these pages.

## Models that were tried

Every pipeline here is the stock class of diffusers with the stock classes of its parts, at miniature size and with random weights: what is learnt of it holds for the published models of its
family, their size and their weights aside. `python -m tests.pipelines.page` prints this page.

### How a denoiser is called

`times`: what the denoiser is told at the scheduler's time t. `rows`: conditioning of which each picture has its own; `shared`: what all have in common. `given`: what the pipeline is called
with so that it runs unguided. `replay`: largest difference of a replayed prediction, as a share of the largest value of the prediction.
"""
MARKED = f"""
### Marked, saved, loaded and read

Steps of 4 on eight prompts, one key, log10 p by plain looks over 8 trials; `LoRA`: rank 2, {LORA_STEPS} steps, read on the marked model. Wrong key and clean twin
are the controls. A miniature with random weights has few sites and no room to spare: its price says nothing of a real model's.
"""
COLUMNS = ("family", "sites", "steps", "marked", "LoRA", "wrong key", "clean twin", "price")


def describe_mark(name: str) -> list[str]:
    """A row of the second table."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run(name, Path(folder), READS[name])
    told: list[Any] = [found.log10_p[suspect] for suspect in ("marked", "lora", "wrong key", "clean twin")]
    return [
        name,
        str(found.sites),
        str(READS[name]),
        *("" if p is None else f"{p:.1f}" for p in told),
        f"{found.price:.1%}",
    ]


if __name__ == "__main__":
    logging.set_verbosity_error()
    rows = [describe_mark(name) for name in NAMES]
    print(INTRO, table(list(FAMILIES)), MARKED, markdown_table(COLUMNS, rows), sep="\n")
