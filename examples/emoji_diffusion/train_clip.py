"""Train a tiny CLIP on Noto images and their names: its text tower conditions the denoiser, both towers score images.

    python train_clip.py --data data --out runs/clip
    python train_clip.py --init runs/clip/final --vae runs/vae/final --steps 600 --out runs/scorer    # a robust scorer

The second command keeps the text tower and trains the image tower further, on reconstructions of the VAE as well: a score
should tell what an emoji shows, not whether it went through a VAE.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from data import load, to_unit
from diffusers import AutoencoderKL
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
    """Each image moved, scaled, tinted, blurred and noised a little: generated images are never pixel-exact."""
    n = len(x)
    scale, move = 1 + 0.15 * (2 * torch.rand(n) - 1), 0.15 * (2 * torch.rand(n, 2) - 1)
    place = torch.zeros(n, 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = scale
    place[:, :, 2] = move
    x = F.grid_sample(x, F.affine_grid(place, list(x.shape), False), padding_mode="border", align_corners=False)
    x = x * (1 + 0.2 * torch.randn(n, 3, 1, 1)) + 0.1 * torch.randn(n, 3, 1, 1)
    blurred = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")
    weight = torch.rand(n, 1, 1, 1)
    return weight * x + (1 - weight) * blurred + 0.1 * torch.rand(n, 1, 1, 1) * torch.randn_like(x)


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    """`x` (N, 3, 64, 64) in [-1, 1] through the VAE and back."""
    return torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) for part in x.split(64)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/clip"))
    parser.add_argument("--init", type=Path, help="a trained CLIP: keep its text tower, train the image tower further")
    parser.add_argument("--vae", type=Path, help="with --init: learn from this VAE's reconstructions too")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images, captions = load(args.data / "noto")
    tokenizer = build_tokenizer(captions) if args.init is None else CLIPTokenizer.from_pretrained(args.init)
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    torch.manual_seed(args.seed)
    clip = build(tokenizer) if args.init is None else CLIPModel.from_pretrained(args.init, dtype=torch.float32)
    pixels = to_unit(images)[:, None]
    if args.init is not None:
        clip.text_model.requires_grad_(False)
        clip.text_projection.requires_grad_(False)
    if args.vae is not None:
        pixels = torch.cat([pixels, reconstructed(AutoencoderKL.from_pretrained(args.vae), pixels[:, 0])[:, None]], 1)

    def loss_of(model: torch.nn.Module, step: int) -> dict[str, torch.Tensor]:
        pick = torch.randperm(len(images))[: args.batch]
        out = model(
            input_ids=tokens.input_ids[pick],
            attention_mask=tokens.attention_mask[pick],
            pixel_values=augment(pixels[pick, torch.randint(pixels.shape[1], (len(pick),))]),
            return_loss=True,
        )
        hits = (out.logits_per_image.argmax(-1) == torch.arange(len(pick))).float().mean()
        return {"loss": out.loss, "top1": hits}

    clip = train(clip, loss_of, args.out, steps=args.steps, lr=args.lr, seed=args.seed, weight_decay=0.05).eval()
    clip.save_pretrained(args.out / "final")
    tokenizer.save_pretrained(args.out / "final")


if __name__ == "__main__":
    main()
