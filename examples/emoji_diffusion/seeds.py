"""Fresh keys, fresh embeddings, fresh descendants: the verdicts and their controls, one JSON line a seed.

    python seeds.py --seeds 1 2 3 --out seeds.jsonl     # needs the shipped folders alone; some 45 minutes a seed on one core
    python seeds.py --table --out seeds.jsonl           # the table, from what was measured

A seed fixes the key (a child of the demo key), the batches and the noise. Seeds already in the file are not run again.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from export import DEMO_KEY

from aiao_diffusers import EmbedConfig, LatentData, embed, verify
from aiao_diffusers.bench.attacks.finetune import full, lora
from aiao_diffusers.denoiser.price import measure_price


HERE = Path(__file__).parent
COLUMNS = ("marked", "lora", "finetuned", "base", "lora on base", "wrong key")


def measure(seed: int, folder: Path) -> dict[str, Any]:
    """Embed, fine-tune twice and read six times; `folder` holds the LoRA for as long as it is needed."""
    started, key = time.time(), DEMO_KEY.child(f"seed/{seed}")
    noto = LatentData.load(HERE / "latents" / "noto.safetensors")
    style = LatentData.load(HERE / "latents" / "twemoji.safetensors")
    base = StableDiffusionPipeline.from_pretrained(HERE / "base")
    pipe = StableDiffusionPipeline.from_pretrained(HERE / "base")
    record = embed(pipe, key, noto, EmbedConfig(seed=seed)).record
    price = measure_price(base.unet, pipe.unet, noto, pipe.scheduler, samples=1024, seed=seed)
    plain = verify(pipe.unet, key, record=record, trials=200, seed=seed, early_stop=False)
    file = lora(pipe.unet, style, pipe.scheduler, folder, rank=8, steps=200, lr=1e-3, seed=seed)
    p = {
        "marked": plain.log10_p,
        "lora": verify(file, key, base=pipe.unet, record=record).log10_p,
        "base": verify(base.unet, key, record=record).log10_p,
        "lora on base": verify(file, key, base=base.unet, record=record).log10_p,
        "wrong key": verify(pipe.unet, key.child("wrong"), record=record).log10_p,
    }
    full(pipe.unet, style, pipe.scheduler, steps=300, lr=1e-4, seed=seed)
    p["finetuned"] = verify(pipe.unet, key, record=record).log10_p
    return {
        "seed": seed,
        "log10_p": {name: round(p[name], 1) for name in COLUMNS},
        "bits": round(plain.bit_accuracy, 4),
        "verification_rate": plain.verification_rate,
        "fidelity": round(price["ratio"], 5),
        "fidelity_ci": round(price["ratio_ci"], 5),
        "seconds": round(time.time() - started),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; every seed is shown, so no mean hides a bad one."""
    lines = ["| seed | " + " | ".join(COLUMNS) + " | bits | rate, n 200 | price |", "|---" * 10 + "|"]
    for row in sorted(rows, key=lambda r: r["seed"]):
        cells = [f"{row['log10_p'][name]:.1f}" for name in COLUMNS]
        price = f"{row['fidelity']:.2%} +- {row['fidelity_ci']:.2%}"
        cells += [f"{row['bits']:.3f}", f"{row['verification_rate']:.3f}"]
        lines.append(f"| {row['seed']} | " + " | ".join([*cells, price]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=HERE / "seeds.jsonl")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    for seed in [] if args.table else args.seeds:
        if any(row["seed"] == seed for row in rows):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(measure(seed, Path(scratch)))
        with open(args.out, "a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
