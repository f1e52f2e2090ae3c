"""Train the autoencoder: 64x64 RGB to 4x16x16 latents, on Noto images.

python train_vae.py --data data --out runs/vae
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from data import load, to_unit
from diffusers import AutoencoderKL
from loop import train


def build() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=64,
    )


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Finite differences along both axes: an L1 loss alone blurs outlines, which is what an emoji is made of."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/vae"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images = load(args.data / "noto")[0]
    torch.manual_seed(args.seed)
    vae = build()

    def loss_of(model: torch.nn.Module, step: int) -> dict[str, torch.Tensor]:
        x = to_unit(images[torch.randint(len(images), (args.batch,))])
        if torch.rand(()) < 0.5:
            x = x.flip(-1)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        pixel = F.l1_loss(y, x) + F.mse_loss(y, x)
        edge = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True))
        kl = posterior.kl().mean()
        return {"loss": pixel + edge + 1e-5 * kl, "pixel": pixel, "edge": edge, "kl": kl}

    vae = train(vae, loss_of, args.out, steps=args.steps, lr=args.lr, seed=args.seed).eval()
    with torch.no_grad():
        latents = torch.cat([vae.encode(to_unit(batch)).latent_dist.mean for batch in images.split(128)])
    # Unit variance is what the noise schedule of the denoiser assumes.
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    vae.save_pretrained(args.out / "final")


if __name__ == "__main__":
    main()
