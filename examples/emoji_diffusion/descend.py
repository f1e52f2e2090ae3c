"""From the trained base: commit, mark it with the demo key, train a LoRA and a full fine-tune on Twemoji, cache latents.
The same LoRA on the base is the control of what a LoRA's file tells.

The beacon is given by hand and nothing is dated, as the key is public: the example proves nothing about anybody.

python descend.py --data data --runs runs
python descend.py --data data --runs runs/flow --base base
"""

import argparse
import json
from pathlib import Path

import torch
from data import load
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from export import DEMO_KEY
from PIL import Image
from train_unet import encode_captions, encode_images

from aiao_diffusers import LatentData, embed
from aiao_diffusers.bench.attacks.finetune import full, lora
from aiao_diffusers.denoiser.encode import prepare
from aiao_diffusers.denoiser.setup import denoiser_of
from aiao_diffusers.embedding.commit import commit
from aiao_diffusers.protocol.beacon import by_hand


BEACON = by_hand("the emoji example of aiao_diffusers")


def latents_of(pipe: DiffusionPipeline, folder: Path) -> LatentData:
    images, captions = load(folder)
    if not isinstance(pipe, StableDiffusionPipeline):
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        return prepare(pipe, list(zip(pictures, captions, strict=True)), options={"max_sequence_length": 16})
    context = encode_captions(pipe.tokenizer, pipe.text_encoder, captions)
    return LatentData(encode_images(pipe.vae, images), {"encoder_hidden_states": context})


def cache(data: LatentData, count: int, seed: int, path: Path) -> None:
    """A random subset for the full demo, which must not need the image folders."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    data.take(order[:count]).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--base", default="unet/final", help="folder of the base, below that of the runs")
    parser.add_argument("--rows", type=int, default=512, help="latents kept of Noto; half as many of Twemoji")
    args = parser.parse_args()
    pipe = DiffusionPipeline.from_pretrained(args.runs / args.base)
    cached = args.runs / "noto.safetensors"
    if not cached.exists():  # copied from `latents/`, the mark is made again from the repository alone
        cache(latents_of(pipe, args.data / "noto"), args.rows, 0, cached)
    noto = LatentData.load(cached)
    commitment = commit(pipe, DEMO_KEY, noto).commitment.with_companions(beacon=json.dumps(BEACON.to_dict()).encode())

    def tell(step: int, row: dict[str, float]) -> None:
        if step % 25 == 0:
            print(step, row, flush=True)

    report = embed(pipe, DEMO_KEY, noto, callback=tell, commitment=commitment)
    print(json.dumps(report.to_dict()))
    pipe.save_pretrained(args.runs / "marked")
    report.record.save(args.runs / "marked")
    twemoji = latents_of(pipe, args.data / "twemoji")
    lora(denoiser_of(pipe), twemoji, pipe.scheduler, args.runs / "lora", rank=8, steps=200, lr=1e-3)
    twin = DiffusionPipeline.from_pretrained(args.runs / args.base)
    lora(denoiser_of(twin), twemoji, twin.scheduler, args.runs / "lora_of_base", rank=8, steps=200, lr=1e-3)
    full(denoiser_of(pipe), twemoji, pipe.scheduler, steps=400, lr=1e-4)
    pipe.save_pretrained(args.runs / "finetuned")
    if not (args.runs / "twemoji.safetensors").exists():
        cache(twemoji, args.rows // 2, 1, args.runs / "twemoji.safetensors")


if __name__ == "__main__":
    main()
