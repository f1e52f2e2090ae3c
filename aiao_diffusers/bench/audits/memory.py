"""Peak memory of embedding against ordinary fine-tuning of the same parameters, each in a process of its own: `aiao bench
memory`.

Both forward the same number of rows: embedding's batch holds three parts, so ordinary fine-tuning gets three times the
batch. The peak is the kernel's (VmHWM, Linux), less what the process held before the model was loaded.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ...denoiser.finetune import finetune
from ...denoiser.inputs import LatentData
from ...embedding.config import TRAIN, EmbedConfig
from ...embedding.embed import embed
from ...embedding.layer_profile import self_profile
from ...embedding.weight_change import LowRank, StoredWeights
from ...errors import ResultsError
from ...files.peak import peak_bytes, reset_peak, resident_bytes
from ...files.text import markdown_table
from ...mark.key import WatermarkKey
from ...pipeline import WatermarkedStableDiffusionPipeline
from ..progress import Progress, log_progress
from ..registry import known


STEPS = 3
COLUMNS = ("train", "batch size", "ordinary fine-tuning, MiB", "embedding, MiB", "ratio")


def measure(base: str, latents: str, train: str, batch_size: int, ordinary: bool) -> int:
    """Bytes above what the process held before it loaded the model, at the peak of `STEPS` steps; run it only once."""
    data = LatentData.load(latents)
    before = resident_bytes()
    pipe = WatermarkedStableDiffusionPipeline.from_pretrained(base)
    config = EmbedConfig(steps=STEPS, batch_size=batch_size, train=train)
    denoiser = pipe.unet
    # Found beforehand in both cases: what is compared is the training alone.
    profile = self_profile(pipe, data, steps=1, batch_size=1) if train == "lazy" else None
    # What the profile took must not hide the peak that is asked for.
    reset_peak()
    if not ordinary:
        embed(pipe, WatermarkKey(bytes(range(32)), "Demo"), data, config, profile=profile)
    else:
        if train == "lora":
            LowRank(denoiser, config.rank)
        elif profile is not None:
            StoredWeights(denoiser, profile.laziest(denoiser, config.lazy_share)).release()
        else:
            denoiser.requires_grad_(True)
        finetune(denoiser, data, pipe.scheduler, steps=STEPS, lr=config.lr, batch_size=3 * batch_size)
    return peak_bytes() - before


def measure_apart(base: str, latents: str, train: str, batch_size: int, ordinary: bool) -> int:
    """`measure` in a fresh process.

    Raises:
        ResultsError: the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, base, latents, train, batch_size, ordinary).result()
        except BrokenProcessPool as error:
            raise ResultsError(
                f"the process that measured train '{train}' at batch size {batch_size} was killed, for want of memory "
                "perhaps: take a smaller batch."
            ) from error


def compare(
    base: str,
    latents: str,
    trains: Sequence[str] = TRAIN,
    batch_sizes: Sequence[int] = (1, 8),
    progress: Progress = log_progress,
) -> list[dict[str, Any]]:
    """A row a way to train and batch size, with both peaks in bytes.

    Raises:
        ConfigError: an unknown way to train. ResultsError: as `measure_apart`.
    """
    asked = [(known("way to train", train, TRAIN), size) for train in trains for size in batch_sizes]
    rows: list[dict[str, Any]] = []
    for train, size in asked:
        ordinary, embedding = (measure_apart(base, latents, train, size, plain) for plain in (True, False))
        rows.append({"train": train, "batch_size": size, "ordinary": ordinary, "embedding": embedding})
        progress(len(rows), len(asked), f"{train}, batch size {size}: ratio {embedding / ordinary:.3f}")
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table for people."""
    cells = [
        (
            *(row["train"], str(row["batch_size"])),
            *(f"{row[kind] / 2**20:.0f}" for kind in ("ordinary", "embedding")),
            f"{row['embedding'] / row['ordinary']:.3f}",
        )
        for row in rows
    ]
    return markdown_table(COLUMNS, cells) + "\n"
