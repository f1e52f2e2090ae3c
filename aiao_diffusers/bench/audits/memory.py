"""Peak memory of embedding against ordinary fine-tuning of the same parameters, each in a process of its own.

python -m aiao_diffusers.bench.audits.memory BASE --latents FILE

Both forward the same number of rows: embedding's batch holds three parts, so ordinary fine-tuning gets three times the
batch. The peak is the kernel's (VmHWM, Linux), less what the process held before the model was loaded.
"""

import argparse
import json
import subprocess
import sys

from ...denoiser.finetune import finetune
from ...denoiser.inputs import LatentData
from ...embedding.config import TRAIN, EmbedConfig
from ...embedding.embed import embed
from ...embedding.layer_profile import self_profile
from ...embedding.weight_change import LowRank, StoredWeights
from ...files.peak import peak_bytes, reset_peak, resident_bytes
from ...files.text import table_head, table_row
from ...mark.key import WatermarkKey
from ...pipeline import WatermarkedStableDiffusionPipeline


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


def apart(arguments: list[str]) -> int:
    """`measure` in a fresh process."""
    words = [sys.executable, "-m", "aiao_diffusers.bench.audits.memory", *arguments]
    return int(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))


def main(words: list[str] | None = None, prog: str | None = None) -> None:
    """Prints a Markdown table, one row a way to train."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--latents", required=True)
    parser.add_argument("--train", nargs="+", choices=TRAIN, default=TRAIN)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--one", choices=["ordinary", "embed"], help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.one:
        print(measure(args.base, args.latents, args.train[0], args.batch_size[0], args.one == "ordinary"))
        return
    print(table_head(COLUMNS))
    for train in args.train:
        for size in args.batch_size:
            common = [args.base, "--latents", args.latents, "--train", train, "--batch-size", str(size), "--one"]
            ordinary, marked = (apart([*common, one]) for one in ("ordinary", "embed"))
            sizes = (f"{ordinary / 2**20:.0f}", f"{marked / 2**20:.0f}")
            print(table_row((train, str(size), *sizes, f"{marked / ordinary:.3f}")))


if __name__ == "__main__":
    main()
