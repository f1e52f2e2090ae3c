"""Write the shipped fp16 folders from training runs: base, marked (with its record), LoRA, fine-tune, CLIP, latents.

What the runs did not make anew stays as it is.

python export.py --runs runs --out .
python export.py --runs runs/flow --base base --out flow
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import card
import torch
from diffusers import DiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from aiao_diffusers import WatermarkKey, WatermarkRecord
from aiao_diffusers.denoiser.hashes import weights_sha256
from aiao_diffusers.denoiser.setup import denoiser_of


DEMO_KEY = WatermarkKey(bytes(range(32)), "Demo")  # public on purpose: whoever clones the repository can verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--base", default="unet/final", help="folder of the base, below that of the runs")
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    for source, name in ((args.base, "base"), ("marked", "marked"), ("finetuned", "finetuned")):
        if not (args.runs / source).exists():
            continue
        pipe = DiffusionPipeline.from_pretrained(args.runs / source).to(dtype=torch.float16)
        # transformers keeps the stored dtype where diffusers loads float32: a half text encoder would break the pair.
        for part in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            if getattr(pipe, part, None) is not None:
                getattr(pipe, part).float()
        pipe.save_pretrained(args.out / name)
        if name == "marked":
            # Half precision changes the hash of the weights; the commitment does not cover it, for it came before.
            record = WatermarkRecord.load(args.runs / source)
            dataclasses.replace(record, marked_sha256=weights_sha256(denoiser_of(pipe))).save(args.out / name)
        for path in (args.out / name).rglob("*.json"):
            # diffusers notes the folder it loaded from; nobody else has that folder.
            document = json.loads(path.read_text())
            if isinstance(document, dict) and document.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(document, indent=2) + "\n")
    for name in ("lora", "lora_of_base"):
        if (args.runs / name).exists():
            shutil.copytree(args.runs / name, args.out / name, dirs_exist_ok=True)
    clip = args.runs / "scorer/final"
    if clip.exists():
        CLIPModel.from_pretrained(clip).half().save_pretrained(args.out / "clip")
        CLIPTokenizer.from_pretrained(clip).save_pretrained(args.out / "clip")
    (args.out / "latents").mkdir(exist_ok=True)
    for name in ("noto", "twemoji"):
        if (args.runs / f"{name}.safetensors").exists():
            shutil.copy(args.runs / f"{name}.safetensors", args.out / "latents")
    kind = "flow/" if args.out.name == "flow" else ""
    for name in card.CARDS:
        if ("/" in name) == bool(kind):
            card.write(args.out / name.removeprefix(kind), name)
    if not (args.out / "demo.key").exists():
        DEMO_KEY.save(args.out / "demo.key")


if __name__ == "__main__":
    main()
