"""Which layers of the base are busy, which lazy? Full fine-tunes and LoRAs, two styles, several seeds; prints the tables of docs/lazy.md and writes the profiles.

python layers.py --data data --out layers
"""

import argparse
import copy
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
from data import load
from diffusers import StableDiffusionPipeline
from scipy.stats import spearmanr, t
from train_unet import encode_captions, encode_images

from aiao_diffusers import LatentData, LayerProfile, profile
from aiao_diffusers.bench.attacks.finetune import full, lora


def interval(values: list[float]) -> str:
    """Mean and half-width of its 95% interval by Student's t."""
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.3f} +- {half:.3f}"


def agreement(profiles: list[LayerProfile], others: list[LayerProfile] | None = None) -> str:
    """Mean rank correlation of the layers' changes, over pairs within one list or across two."""
    pairs = combinations(profiles, 2) if others is None else [(a, b) for a in profiles for b in others]
    found = []
    for a, b in pairs:
        both = [(x.change, y.change) for x, y in zip(a.layers, b.layers, strict=True) if x.change and y.change]
        found.append(spearmanr(*zip(*both, strict=True)).statistic)
    return f"{np.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--base", type=Path, default=Path(__file__).parent / "base")
    parser.add_argument("--out", type=Path, default=Path("layers"))
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipe = StableDiffusionPipeline.from_pretrained(args.base)
    styles = {}
    for name in ("twemoji", "inverted"):
        images, captions = load(args.data / ("twemoji" if name == "twemoji" else "noto"))
        images, captions = images[: args.images], captions[: args.images]
        # The second style is a filter: the pre-training images with their colours inverted.
        latents = encode_images(pipe.vae, 255 - images if name == "inverted" else images)
        context = encode_captions(pipe.tokenizer, pipe.text_encoder, captions)
        styles[name] = LatentData(latents, {"encoder_hidden_states": context})
    options = {"steps": args.steps, "batch_size": args.batch_size}
    found: dict[tuple[str, str], list[LayerProfile]] = {}
    for style, data in styles.items():
        tuned: dict[str, list] = {"full": [], "lora": []}
        with tempfile.TemporaryDirectory() as scratch:
            for seed in range(args.seeds):
                clone = copy.deepcopy(pipe.unet)
                tuned["full"].append(full(clone, data, pipe.scheduler, lr=1e-4, seed=seed, **options))
                folder = Path(scratch) / str(seed)
                tuned["lora"].append(
                    lora(pipe.unet, data, pipe.scheduler, folder, rank=8, lr=1e-3, seed=seed, **options)
                )
            for kind, suspects in tuned.items():
                found[kind, style] = [profile(pipe.unet, one) for one in suspects]
                together = profile(pipe.unet, suspects)
                together.save(args.out / f"{kind}-{style}.json")
                together.plot().savefig(args.out / f"{kind}-{style}.png", dpi=150)
    print(f"seeds 0-{args.seeds - 1}, {args.steps} steps of {args.batch_size}, {args.images} images a style\n")
    print(
        "| fine-tune | style | layers moved | share of the busiest tenth | busiest / median / laziest | seeds agree |"
    )
    print("|---|---|---|---|---|---|")
    for (kind, style), profiles in found.items():
        moved = [layer.change for layer in LayerProfile.load(args.out / f"{kind}-{style}.json").moved()]
        spread = f"{moved[0]:.4f} / {np.median(moved):.4f} / {moved[-1]:.5f}"
        share = interval([p.busiest_share() for p in profiles])
        print(f"| {kind} | {style} | {len(moved)} | {share} | {spread} | {agreement(profiles)} |")
    print("\nRank correlation of layers across the two styles: ", end="")
    print(
        "; ".join(f"{k} {agreement(found[k, 'twemoji'], found[k, 'inverted'])}" for k in ("full", "lora")), end=".\n\n"
    )
    for kind in ("full", "lora"):
        print(LayerProfile.load(args.out / f"{kind}-twemoji.json").to_markdown(5))


if __name__ == "__main__":
    main()
