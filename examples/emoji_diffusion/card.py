"""The card of each shipped folder: data, licence, steps, seed, command. `export.py` writes them."""

from pathlib import Path


NOTO = "Noto Emoji by Google, `emoji-datasource-google` 16.0.0, images Apache-2.0, (c) Google"
TWEMOJI = "Twemoji, `emoji-datasource-twitter` 16.0.0, images CC-BY-4.0, (c) Twitter, Inc. and other contributors"

# folder: (title, licence id, relation and parent, data, steps, commands)
CARDS = {
    "base": (
        "Emoji diffusion, unmarked",
        "apache-2.0",
        None,
        NOTO,
        "VAE 1,000 steps of 16 images; tiny CLIP 1,000 of 128 pairs; U-Net 6,000 of 24, then 3,500 of 24 more with a new "
        "optimiser, AdamW, peak lr 5e-4, EMA .999, caption dropout .1. fp16; 64x64 pixels; U-Net 8.7M parameters.",
        "python train_vae.py; python train_clip.py; accelerate launch --num_processes 2 train_unet.py --batch 12; "
        "accelerate launch --num_processes 2 train_unet.py --batch 12 --steps 3500 --init FIRST",
    ),
    "marked": (
        "Emoji diffusion, marked with the demo key",
        "apache-2.0",
        ("finetune", "base"),
        NOTO,
        "`EmbedConfig()`: 500 steps of 12 latents in three copies on the 512 cached ones (`latents/noto.safetensors`), under a commitment with randomness given by hand; then a lineage carrier of strength .25.",
        "python descend.py; python export.py",
    ),
    "finetuned": (
        "Emoji diffusion, marked, then fine-tuned on Twemoji",
        "cc-by-4.0",
        ("finetune", "marked"),
        TWEMOJI,
        "All weights, 400 steps of 16 latents, AdamW, lr 1e-4.",
        "python descend.py; python export.py",
    ),
    "lora": (
        "Twemoji style LoRA for the marked model",
        "cc-by-4.0",
        ("adapter", "marked"),
        TWEMOJI,
        "Rank 8 on the attention projections, 200 steps of 16 latents, AdamW, lr 1e-3.",
        "python descend.py; python export.py",
    ),
    "lora_of_base": (
        "Twemoji style LoRA for the unmarked base: a control",
        "cc-by-4.0",
        ("adapter", "base"),
        TWEMOJI,
        "As `lora/`, with the same seed, on the base: what a LoRA's file tells where no model was marked.",
        "python descend.py; python export.py",
    ),
    "clip": (
        "A tiny CLIP of emoji and their names",
        "apache-2.0",
        None,
        NOTO,
        "1,000 steps of 128 pairs, contrastive; then 600 of 96 for the image tower alone, on images and on their VAE "
        "reconstructions. The text tower is the text encoder of `base/`.",
        "python train_clip.py; python train_clip.py --init ... --vae ... --steps 600 --batch 96 --lr 5e-4; python export.py",
    ),
    "unconditional": (
        "Emoji diffusion without prompts, unmarked",
        "apache-2.0",
        ("finetune", "base"),
        NOTO,
        "An unconditional `UNet2DModel` of 7.0M parameters that starts from the base's convolutions: 1,500 steps of 24 latents, "
        "AdamW, peak lr 4e-4, EMA .998. fp16. Its VAE, `vqvae`, is a link to the base's.",
        "python train_unconditional.py",
    ),
    "flow/base": (
        "Emoji diffusion by flow matching, unmarked",
        "apache-2.0",
        None,
        NOTO,
        "A Stable Diffusion 3 transformer of 7.4M parameters, 10 blocks of joint attention: 14,000 steps of 16 latents, AdamW, peak lr 1e-3, "
        "EMA .9995, caption dropout .1. fp16; 64x64 pixels. VAE and text encoders are the other models' (links); the T5 encoder is a silent "
        "one. Call it with `max_sequence_length=16`.",
        "python flow/train.py; python export.py --base base --out flow",
    ),
    "latents": (
        "Cached latents for the full demo",
        "cc-by-4.0",
        None,
        f"512 of {NOTO}; 256 of {TWEMOJI}",
        "No training: the VAE's posterior means with the caption embeddings, a random subset.",
        "python descend.py; python export.py",
    ),
}


def write(folder: Path, name: str) -> None:
    """Write the card `name` of a shipped folder over an older one."""
    title, licence, parent, data, steps, commands = CARDS[name]
    lines = ["---", f"license: {licence}", "library_name: diffusers"]
    if folder.name in ("base", "marked", "finetuned", "lora"):
        lines += ["pipeline_tag: text-to-image"]
    if folder.name == "unconditional":
        lines += ["pipeline_tag: unconditional-image-generation"]
    lines += ["tags: [emoji, aiao-watermark]" if folder.name == "marked" else "tags: [emoji]", "---", ""]
    lines += [f"# {title}", "", "| | |", "|---|---|"]
    if parent is not None:
        lines += [f"| made from | `{parent[1]}/`, as {parent[0]} |"]
    lines += [f"| data | {data} |", f"| training | {steps} |", "| seed | 0 |"]
    lines += [f"| commands, in this folder's parent | `{commands}` |", f"| licence | {licence} |", ""]
    if folder.name == "marked":
        lines += ["The weights carry a watermark with the public record `aiao/`. The demo key is public on purpose,"]
        lines += ["so a verdict with it proves nothing about who made a model.", ""]
    lines += ["A research toy to demonstrate watermarks; it draws small emoji and nothing else.", ""]
    (folder / "README.md").write_text("\n".join(lines))
