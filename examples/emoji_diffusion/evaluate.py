"""Print the figures of the shipped models: VAE PSNR, price and verification rate of the mark, and retrieval of the prompt from its generated image by the tiny CLIP.

python evaluate.py --data data --prompts 200
python evaluate.py --data data --models flow
"""

import argparse
import random
from collections import defaultdict
from pathlib import Path

import torch
from data import load, to_unit
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from aiao_diffusers import LatentData, WatermarkKey, verify
from aiao_diffusers.denoiser.price import measure_price
from aiao_diffusers.denoiser.setup import denoiser_of
from aiao_diffusers.stats.multiple import clopper_pearson


OPTIONS = defaultdict(dict, {StableDiffusion3Pipeline: {"max_sequence_length": 16}})
"""What a kind of pipeline is called with beside prompt and steps."""


@torch.no_grad()
def hits(clip: CLIPModel, images: torch.Tensor, tokens: torch.Tensor, own: list[int], pools: list[list[int]]) -> int:
    """How many of `images` (N, 3, 64, 64) in [-1, 1] are nearest to their own caption among the 100 of their pool."""
    out = clip(input_ids=tokens, pixel_values=images)
    score = out.logits_per_image
    return sum(int(max(pool, key=lambda j: score[i, j].item()) == own[i]) for i, pool in enumerate(pools))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument(
        "--models", type=Path, default=Path(), help="folder of base, marked, lora, latents and pictures"
    )
    parser.add_argument("--clip", type=Path, default=Path(__file__).parent / "clip")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    models = Path(__file__).parent / args.models
    pipe = open_model(models / "base")
    clip = CLIPModel.from_pretrained(args.clip, dtype=torch.float32)
    for name in ("noto", "twemoji"):
        x = to_unit(load(args.data / name)[0][:256])
        y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        psnr = 10 * torch.log10(4 / (x - y).square().mean((1, 2, 3)))
        print(f"VAE PSNR {name}: {psnr.mean():.2f} dB, standard error {psnr.std() / len(x) ** 0.5:.2f} (n {len(x)})")
    if (models / "marked").exists():
        tell_mark(pipe, models, args.seed)
    images, captions = load(args.data / "noto")
    tokens = CLIPTokenizer.from_pretrained(args.clip)(
        captions, padding="max_length", truncation=True, return_tensors="pt"
    )
    draw = random.Random(args.seed)
    own = draw.sample(range(len(captions)), args.prompts)
    pools = [[i, *draw.sample([j for j in range(len(captions)) if j != i], 99)] for i in own]
    options = {"num_inference_steps": 20, "guidance_scale": args.guidance, "output_type": "pt", **OPTIONS[type(pipe)]}
    made = []
    for start in range(0, len(own), 20):
        batch = own[start : start + 20]
        generators = [torch.Generator().manual_seed(args.seed + i) for i in batch]
        made.append(pipe([captions[i] for i in batch], generator=generators, **options).images * 2 - 1)
    generated = torch.cat(made)
    for name, pictures in (("real", to_unit(images[own])), ("generated", generated)):
        count = hits(clip, pictures, tokens.input_ids, own, pools)
        low, high = clopper_pearson(count, len(own))
        print(f"top-1 of 100 captions, {name}: {count / len(own):.3f} (95% CI {low:.3f}-{high:.3f}, n {len(own)})")
    (models / "pictures").mkdir(exist_ok=True)
    sheet(generated[:24], 8).save(models / "pictures" / "contact_sheet.png")
    if not (models / "lora").exists():
        return
    rows = []
    for folder, adapter in (("base", None), ("marked", None), ("marked", "lora")):
        pipe = open_model(models / folder)
        if adapter is not None:
            pipe.load_lora_weights(models / adapter)
        generators = [torch.Generator().manual_seed(args.seed + i) for i in own[:8]]
        rows.append(pipe([captions[i] for i in own[:8]], generator=generators, **options).images * 2 - 1)
    sheet(torch.cat(rows), 8).save(models / "pictures" / "same_seed.png")
    print("columns of the pictures: " + "; ".join(captions[i] for i in own[:8]))


def open_model(folder: Path) -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tell_mark(pipe: DiffusionPipeline, models: Path, seed: int) -> None:
    """Price and strength of the mark, by the demo key."""
    cached, marked = LatentData.load(models / "latents" / "noto.safetensors"), open_model(models / "marked")
    price = measure_price(denoiser_of(pipe), denoiser_of(marked), cached, pipe.scheduler, samples=1024, seed=seed)
    print(
        f"prediction MSE of marked against base: {price['ratio']:.4f} of the base's loss {price['loss']:.4f}, ", end=""
    )
    print(f"95% CI +-{price['ratio_ci']:.4f} (n {price['samples']:.0f}, seed {seed})")
    key = WatermarkKey(bytes(range(32)), "Demo")
    report = verify(models / "marked", key, trials=200, seed=seed, early_stop=False)
    low, high = report.verification_rate_ci
    print(f"verification rate over random sub-paths: {report.verification_rate:.3f}, ", end="")
    print(f"95% CI {low:.3f}-{high:.3f} (n {report.trials}); bits {sum(s.channels for s in report.sites)}, ", end="")
    print(f"bit accuracy {report.bit_accuracy:.3f}, log10 p {report.log10_p:.1f}")


def sheet(pictures: torch.Tensor, columns: int, side: int = 96) -> Image.Image:
    """`pictures` (N, 3, 64, 64) in [-1, 1], row by row, enlarged."""
    page = Image.new("RGB", (side * columns, side * -(-len(pictures) // columns)))
    for i, picture in enumerate(pictures):
        pixels = Image.fromarray(((picture + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 0).numpy())
        page.paste(pixels.resize((side, side), Image.Resampling.LANCZOS), (i % columns * side, i // columns * side))
    return page


if __name__ == "__main__":
    main()
