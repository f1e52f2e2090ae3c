"""Families whose denoiser is a U-Net."""

from functools import partial
from typing import Any

import diffusers
import torch

from . import text
from .family import Family, seeded
from .parts import kl


BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def unet(**changes: Any) -> Any:
    """`UNet2DConditionModel` of two levels with cross-attention on each, about 100k parameters."""
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": text.WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return seeded(diffusers.UNet2DConditionModel, **config | changes)


def stable_diffusion(prediction: str = "epsilon") -> Any:
    """Version 1, and version 2 by `prediction="v_prediction"`."""
    vocabulary = text.clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=kl(),
        text_encoder=text.clip(vocabulary),
        tokenizer=vocabulary,
        unet=unet(use_linear_projection=prediction == "v_prediction"),
        scheduler=diffusers.DDIMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    """Its second text encoder's pooled states and six numbers of size are added to the time."""
    vocabulary = text.clip_tokenizer()
    return diffusers.StableDiffusionXLPipeline(
        vae=kl(scaling_factor=0.13025),
        text_encoder=text.clip(vocabulary),
        text_encoder_2=text.clip(vocabulary, projection=True),
        tokenizer=vocabulary,
        tokenizer_2=text.clip_tokenizer(),
        unet=unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2 * text.WIDTH,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + text.WIDTH,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(**{k: v for k, v in BETAS.items() if k != "clip_sample"}),
        add_watermarker=False,
    )


def latent_consistency() -> Any:
    """Stable Diffusion distilled to few steps, which is told the guidance's scale beside the time."""
    vocabulary = text.clip_tokenizer()
    return diffusers.LatentConsistencyModelPipeline(
        vae=kl(),
        text_encoder=text.clip(vocabulary),
        tokenizer=vocabulary,
        unet=unet(time_cond_proj_dim=8),
        scheduler=diffusers.LCMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


ADDED_KEYS: dict[str, Any] = {
    "out_channels": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "encoder_hid_dim": text.WIDTH,
    "resnet_time_scale_shift": "scale_shift",
}
"""U-Nets whose attention reads text and picture by keys side by side, and whose output holds variances."""


def deepfloyd_if() -> Any:
    """Of pixels, with a T5."""
    vocabulary = text.t5_tokenizer()
    return diffusers.IFPipeline(
        tokenizer=vocabulary,
        text_encoder=text.t5(vocabulary),
        unet=unet(
            **ADDED_KEYS | {"in_channels": 3, "out_channels": 6},
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
        ),
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True, sample_max_value=1.5
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def movq() -> Any:
    """The autoencoder of Kandinsky 2 and 3, whose norm is 32 groups always."""
    return seeded(
        diffusers.VQModel,
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
        norm_type="spatial",
        num_vq_embeddings=16,
        vq_embed_dim=4,
    )


def kandinsky_3() -> Any:
    """A U-Net of its own class, and a T5 whose padding is cut off."""
    vocabulary = text.t5_tokenizer(max_length=128)
    return diffusers.Kandinsky3Pipeline(
        tokenizer=vocabulary,
        text_encoder=text.t5(vocabulary),
        unet=seeded(
            diffusers.Kandinsky3UNet,
            time_embedding_dim=32,
            groups=2,
            attention_head_dim=8,
            layers_per_block=2,
            block_out_channels=(16, 16, 16, 16),
            cross_attention_dim=32,
            encoder_hid_dim=text.WIDTH,
        ),
        scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True, thresholding=False),
        movq=movq(),
    )


def kandinsky() -> Any:
    """The decoder of Kandinsky 2.2: called with image embeddings, its U-Net says variances too."""
    return diffusers.KandinskyV22Pipeline(
        unet=unet(**ADDED_KEYS, encoder_hid_dim_type="image_proj", addition_embed_type="image"),
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            variance_type="learned_range",
        ),
        movq=movq(),
    )


def image_embeddings(rows: int = 3) -> dict[str, torch.Tensor]:
    """What Kandinsky's prior would make of prompts."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(rows, text.WIDTH, generator=generator) for name in ("image_embeds", "negative_image_embeds")
    }


def ddpm() -> Any:
    """Unconditional, of pixels."""
    return diffusers.DDPMPipeline(
        unet=seeded(
            diffusers.UNet2DModel,
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
        ),
        scheduler=diffusers.DDPMScheduler(clip_sample=False),
    )


SMALL = {"height": 64, "width": 64}
FAMILIES = (
    Family("stable_diffusion", stable_diffusion, SMALL),
    Family("stable_diffusion_2", partial(stable_diffusion, "v_prediction"), SMALL),
    Family("stable_diffusion_xl", stable_diffusion_xl, SMALL),
    Family("latent_consistency", latent_consistency, SMALL),
    Family("deepfloyd_if", deepfloyd_if, {"height": 8, "width": 8, "clean_caption": False}),
    Family("kandinsky_3", kandinsky_3, SMALL),
    Family("kandinsky_2_2", kandinsky, SMALL | image_embeddings(), rows=tuple(image_embeddings())),
    Family("ddpm", ddpm, {"batch_size": 3}, rows=("batch_size",)),
)
