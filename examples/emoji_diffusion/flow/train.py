"""Train the flow-matching transformer on the same latents and captions as the U-Net; writes a whole Stable Diffusion 3 folder.

    python flow/train.py --data data --out runs/flow

Both CLIP encoders are the text tower of the tiny CLIP, with its projection. The T5 encoder that the stock pipeline asks for is a silent
one, whose output is zero: as many tokens as `max_sequence_length` says. The model is trained on `ZEROS` of them and now and then on
other numbers.

`--out/final` always holds the pipeline with the averaged (EMA) weights of the newest checkpoint.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.training_utils import EMAModel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast


sys.path.insert(0, str(Path(__file__).parents[1]))  # the example's other scripts are no package
from data import load
from loop import train
from train_unet import encode_images


EXAMPLE = Path(__file__).parents[1]
ZEROS = 16
"""Of T5's tokens: the pipeline is to be called with `max_sequence_length=16`; its default, 256, works and is slower."""
STEPS = 1000


def build() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=10,
        attention_head_dim=36,
        num_attention_heads=4,
        joint_attention_dim=256,  # two encoders of 128
        caption_projection_dim=144,
        pooled_projection_dim=256,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def build_pipeline(transformer: SD3Transformer2DModel, vae: AutoencoderKL, clip: Path) -> StableDiffusion3Pipeline:
    """The stock pipeline around a transformer; both of its CLIP encoders are one module."""
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    encoder = CLIPTextModelWithProjection.from_pretrained(clip, dtype=torch.float32).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=STEPS, shift=1.0)
    vae.register_to_config(shift_factor=0.0)  # the pipeline adds it, and None is no number
    return StableDiffusion3Pipeline(
        transformer, scheduler, vae, encoder, tokenizer, encoder, tokenizer, *build_silent_t5()
    )


def build_silent_t5() -> tuple[T5EncoderModel, T5TokenizerFast]:
    """An encoder whose last norm is zero, and a tokenizer that knows no word: Stable Diffusion 3 does without T5, its folder does not."""
    encoder = T5EncoderModel(T5Config(vocab_size=3, d_model=256, d_kv=4, d_ff=4, num_layers=1, num_heads=1)).eval()
    torch.nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder, T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], extra_ids=0)


@torch.no_grad()
def encode_captions(pipe: StableDiffusion3Pipeline, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """`(N, 16, 256)` without the zeros, and `(N, 256)`, as the pipeline makes them."""
    tokens, pooled = [], []
    for start in range(0, len(captions), 256):
        text, _, summary, _ = pipe.encode_prompt(
            captions[start : start + 256], None, None, do_classifier_free_guidance=False, max_sequence_length=1
        )
        tokens.append(text[:, :-1])
        pooled.append(summary)
    return torch.cat(tokens), torch.cat(pooled)


def draw_zeros() -> int:
    """How many zero tokens a batch has: mostly `ZEROS`."""
    others = (0, 32, 64)
    pick = int(torch.randint(10 * len(others), ()))
    return others[pick] if pick < len(others) else ZEROS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--vae", type=Path, default=EXAMPLE / "base" / "vae")
    parser.add_argument("--clip", type=Path, default=EXAMPLE / "clip")
    parser.add_argument("--out", type=Path, default=Path("runs/flow"))
    parser.add_argument("--init", type=Path, help="go on from the transformer of this pipeline, with a new optimiser")
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--caption-dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images, captions = load(args.data / "noto")
    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).eval()
    latents = encode_images(vae, images)
    torch.manual_seed(args.seed)
    transformer = build()
    if args.init is not None:
        start = SD3Transformer2DModel.from_pretrained(args.init, subfolder="transformer", torch_dtype=torch.float32)
        transformer.load_state_dict(start.state_dict())
    pipe = build_pipeline(transformer, vae, args.clip)
    tokens, pooled = encode_captions(pipe, captions)
    empty_tokens, empty_pooled = encode_captions(pipe, [""])
    ema = EMAModel(transformer.parameters(), decay=0.9995, use_ema_warmup=True, power=0.75)

    def loss_of(model: torch.nn.Module, step: int) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(latents), (args.batch,))
        dropped = torch.rand(args.batch, 1) < args.caption_dropout
        text = torch.where(dropped[..., None], empty_tokens, tokens[pick])
        text = torch.cat([text, text.new_zeros(args.batch, draw_zeros(), text.shape[2])], 1)
        noise = torch.randn_like(latents[pick])
        share = torch.sigmoid(torch.randn(args.batch))  # Stable Diffusion 3's: the middle of the path is the hard part
        spread = share.view(-1, 1, 1, 1)
        velocity = model(
            (1 - spread) * latents[pick] + spread * noise,
            encoder_hidden_states=text,
            pooled_projections=torch.where(dropped, empty_pooled, pooled[pick]),
            timestep=share * STEPS,
        ).sample
        return {"loss": F.mse_loss(velocity, noise - latents[pick])}

    def export(step: int) -> None:
        averaged = build()
        averaged.load_state_dict(transformer.state_dict())
        ema.copy_to(averaged.parameters())
        build_pipeline(averaged.eval(), vae, args.clip).save_pretrained(args.out / "final")

    train(
        transformer,
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
