"""Train a tiny CLIP on Noto images and their names: its text tower conditions the denoiser, both towers score images.

python train_clip.py --data data --out runs/clip
"""

import argparse
import json
from pathlib import Path

import torch
from data import load, to_unit
from loop import train
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer


LENGTH = 16  # tokens a caption; one Noto name of 1,911 is longer and gets cut


def build_tokenizer(captions: list[str], vocabulary: int = 2000) -> CLIPTokenizer:
    """A byte-pair vocabulary of our captions in CLIP's own scheme (lower case, `</w>` ends a word)."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False)])
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=specials, initial_alphabet=alphabet, end_of_word_suffix="</w>"
        ),
    )
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=LENGTH)


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": 128,
    }
    return CLIPModel(
        CLIPConfig(
            text_config={**tower, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH},
            vision_config={**tower, "image_size": 64, "patch_size": 8},
            projection_dim=128,
        )
    )


def augment(x: torch.Tensor) -> torch.Tensor:
    """Shift by up to 4 pixels, add a little noise and blur: generated images are never pixel-exact."""
    dx, dy = torch.randint(-4, 5, (2,)).tolist()
    x = torch.roll(x, (dx, dy), (-2, -1))
    if torch.rand(()) < 0.5:
        x = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    return x + 0.1 * torch.rand(()) * torch.randn_like(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/clip"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images, captions = load(args.data / "noto")
    tokenizer = build_tokenizer(captions)
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    torch.manual_seed(args.seed)
    clip = build(tokenizer)

    def loss_of(model: torch.nn.Module, step: int) -> dict[str, torch.Tensor]:
        pick = torch.randperm(len(images))[: args.batch]
        out = model(
            input_ids=tokens.input_ids[pick],
            attention_mask=tokens.attention_mask[pick],
            pixel_values=augment(to_unit(images[pick])),
            return_loss=True,
        )
        hits = (out.logits_per_image.argmax(-1) == torch.arange(len(pick))).float().mean()
        return {"loss": out.loss, "top1": hits}

    clip = train(clip, loss_of, args.out, steps=args.steps, lr=args.lr, seed=args.seed, weight_decay=0.05).eval()
    clip.save_pretrained(args.out / "final")
    tokenizer.save_pretrained(args.out / "final")


if __name__ == "__main__":
    main()
