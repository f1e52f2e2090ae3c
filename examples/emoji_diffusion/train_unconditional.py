"""Train an unconditional `UNet2DModel` on cached latents of the Noto images, for the benchmark's unconditional task.

    python train_unconditional.py --data data --out runs/unconditional

It starts from the text-to-image denoiser's convolutions: every tensor of equal name and shape is taken over, the attention
blocks (of another kind) are learned anew. `--out/final` holds the averaged (EMA) weights in half precision as an `LDMPipeline`,
whose VAE is the base's: `vqvae` is a link to `base/vae`.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from data import load
from diffusers import AutoencoderKL, LDMPipeline, UNet2DConditionModel, UNet2DModel
from diffusers.training_utils import EMAModel
from loop import train
from train_unet import build_scheduler, encode_images


HERE = Path(__file__).parent


def build() -> UNet2DModel:
    return UNet2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 160),
        layers_per_block=2,
        attention_head_dim=16,
        norm_num_groups=16,
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"),
    )


def take_over(unet: UNet2DModel, base: Path) -> None:
    """Copy every tensor that the text-to-image denoiser has under the same name in the same shape."""
    there = UNet2DConditionModel.from_pretrained(base, subfolder="unet", dtype=torch.float32).state_dict()
    here = unet.state_dict()
    shared = {name: value for name, value in there.items() if name in here and here[name].shape == value.shape}
    unet.load_state_dict(here | shared)
    print(f"{len(shared)} of {len(here)} tensors taken over, {sum(v.numel() for v in shared.values()):,} weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--base", type=Path, default=HERE / "base")
    parser.add_argument("--out", type=Path, default=Path("runs/unconditional"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(args.base, subfolder="vae", dtype=torch.float32).eval()
    latents, scheduler = encode_images(vae, load(args.data / "noto")[0]), build_scheduler()
    torch.manual_seed(args.seed)
    unet = build()
    take_over(unet, args.base)
    ema = EMAModel(unet.parameters(), decay=0.998, use_ema_warmup=True, power=0.75)

    def loss_of(model: torch.nn.Module, step: int) -> dict[str, torch.Tensor]:
        x = latents[torch.randint(len(latents), (args.batch,))]
        noise, t = torch.randn_like(x), torch.randint(scheduler.config.num_train_timesteps, (args.batch,))
        return {"loss": F.mse_loss(model(scheduler.add_noise(x, noise, t), t).sample, noise)}

    def export(step: int) -> None:
        averaged = build()
        averaged.load_state_dict(unet.state_dict())
        ema.copy_to(averaged.parameters())
        LDMPipeline(vae.half(), averaged.eval().half(), scheduler).save_pretrained(args.out / "final")

    options = {"steps": args.steps, "lr": args.lr, "seed": args.seed, "weight_decay": 0.01, "warmup": 100}
    train(unet, loss_of, args.out, ema=ema, on_save=export, **options)


if __name__ == "__main__":
    main()
