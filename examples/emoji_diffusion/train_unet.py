"""Train the denoiser on cached latents and caption embeddings of the Noto images.

    python train_unet.py --data data --vae runs/vae/final --clip runs/clip/final --out runs/unet
    OMP_NUM_THREADS=1 accelerate launch --cpu --num_processes 2 train_unet.py ...    # the faster way on two cores

`--out/final` always holds the pipeline with the averaged (EMA) weights of the newest checkpoint.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from data import load, to_unit
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from loop import train
from transformers import CLIPTextModel, CLIPTokenizer


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 96, 160),
        layers_per_block=2,
        cross_attention_dim=128,
        attention_head_dim=4,  # four heads: diffusers reads this argument as their number
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Scaled latents `(N, 4, 16, 16)`, the posterior's mean."""
    latents = [vae.encode(to_unit(batch)).latent_dist.mean for batch in images.split(64)]
    return torch.cat(latents) * vae.config.scaling_factor


@torch.no_grad()
def encode_captions(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, captions: list[str]) -> torch.Tensor:
    """Caption embeddings `(N, 16, 128)` as `StableDiffusionPipeline` computes them: padded, no attention mask."""
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return torch.cat([encoder(batch).last_hidden_state for batch in tokens.split(256)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/final"))
    parser.add_argument("--clip", type=Path, default=Path("runs/clip/final"))
    parser.add_argument("--out", type=Path, default=Path("runs/unet"))
    parser.add_argument("--init", type=Path, help="go on from the U-Net of this pipeline, with a new optimiser")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=32, help="per process")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--caption-dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images, captions = load(args.data / "noto")
    vae = AutoencoderKL.from_pretrained(args.vae).eval()
    tokenizer, encoder = CLIPTokenizer.from_pretrained(args.clip), CLIPTextModel.from_pretrained(args.clip).eval()
    latents, scheduler = encode_images(vae, images), build_scheduler()
    embeddings, empty = encode_captions(tokenizer, encoder, captions), encode_captions(tokenizer, encoder, [""])
    torch.manual_seed(args.seed)
    unet = build()
    if args.init is not None:
        start = UNet2DConditionModel.from_pretrained(args.init, subfolder="unet", dtype=torch.float32)
        unet.load_state_dict(start.state_dict())
    ema = EMAModel(unet.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)

    def loss_of(model: torch.nn.Module, step: int) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(latents), (args.batch,))
        x, context = latents[pick], embeddings[pick]
        context = torch.where(torch.rand(args.batch, 1, 1) < args.caption_dropout, empty, context)
        noise, t = torch.randn_like(x), torch.randint(scheduler.config.num_train_timesteps, (args.batch,))
        return {"loss": F.mse_loss(model(scheduler.add_noise(x, noise, t), t, context).sample, noise)}

    def export(step: int) -> None:
        averaged = build()
        averaged.load_state_dict(unet.state_dict())
        ema.copy_to(averaged.parameters())
        StableDiffusionPipeline(
            vae, encoder, tokenizer, averaged.eval(), scheduler, None, None, requires_safety_checker=False
        ).save_pretrained(args.out / "final")

    train(
        unet,
        loss_of,
        args.out,
        steps=args.steps,
        lr=args.lr,
        seed=args.seed,
        weight_decay=0.01,
        warmup=200,
        schedule="cosine",
        ema=ema,
        on_save=export,
    )


if __name__ == "__main__":
    main()
