"""Families of images whose denoiser is a transformer, the first half."""

from functools import partial
from typing import Any

import diffusers

from . import text
from .family import Family, seeded, transformer
from .parts import dynamic_flow, flow, kl, kl16


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
ROPE = (4, 6, 6)
SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on "
    "textual prompts or user prompts. <Prompt Start> "
)
SMALL = {"height": 64, "width": 64}
SHORT = SMALL | {"max_sequence_length": 16}


def stable_diffusion_3(**changes: Any) -> Any:
    """Two CLIPs and a T5 in one joint attention; `changes` of the transformer make it 3.5."""
    vocabularies = [text.clip_tokenizer(), text.clip_tokenizer(), text.t5_tokenizer()]
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer(
            diffusers.SD3Transformer2DModel,
            sample_size=8,
            in_channels=8,
            out_channels=8,
            num_layers=4,
            **HEADS,
            joint_attention_dim=2 * text.WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * text.WIDTH,
            pos_embed_max_size=8,
            **changes,
        ),
        scheduler=flow(shift=3.0),
        vae=kl16(),
        text_encoder=text.clip(vocabularies[0], projection=True),
        tokenizer=vocabularies[0],
        text_encoder_2=text.clip(vocabularies[1], projection=True),
        tokenizer_2=vocabularies[1],
        text_encoder_3=text.t5(vocabularies[2], 2 * text.WIDTH),
        tokenizer_3=vocabularies[2],
    )


def flux(guided: bool) -> Any:
    """FLUX.1-dev if `guided`, else schnell: no guidance argument, a fixed shift."""
    vocabularies = [text.clip_tokenizer(), text.t5_tokenizer()]
    return diffusers.FluxPipeline(
        transformer=transformer(
            diffusers.FluxTransformer2DModel,
            in_channels=32,
            num_layers=2,
            num_single_layers=2,
            **HEADS,
            joint_attention_dim=text.WIDTH,
            pooled_projection_dim=text.WIDTH,
            guidance_embeds=guided,
            axes_dims_rope=ROPE,
        ),
        scheduler=dynamic_flow() if guided else flow(shift=1.0),
        vae=kl16(),
        text_encoder=text.clip(vocabularies[0]),
        tokenizer=vocabularies[0],
        text_encoder_2=text.t5(vocabularies[1]),
        tokenizer_2=vocabularies[1],
    )


def flux_2_parts(guided: bool) -> dict[str, Any]:
    """Transformer, autoencoder and scheduler of FLUX.2, whose modulation all blocks share."""
    return {
        "transformer": transformer(
            diffusers.Flux2Transformer2DModel,
            in_channels=32,
            num_layers=2,
            num_single_layers=2,
            **HEADS,
            joint_attention_dim=3 * text.WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guided,
        ),
        "scheduler": dynamic_flow(),
        "vae": seeded(
            diffusers.AutoencoderKLFlux2,
            block_out_channels=(4, 4, 4, 4),
            latent_channels=8,
            layers_per_block=1,
            norm_num_groups=2,
        ),
    }


def flux_2() -> Any:
    """Three hidden states of a Mistral with eyes, side by side."""
    vocabulary = text.chat_tokenizer(diffusers.pipelines.flux2.pipeline_flux2.SYSTEM_MESSAGE, padding_side="left")
    return diffusers.Flux2Pipeline(
        text_encoder=text.mistral3(vocabulary, layers=3), tokenizer=vocabulary, **flux_2_parts(guided=True)
    )


def flux_2_klein() -> Any:
    """Three hidden states of a Qwen 3; distilled, so that no guidance is asked for."""
    vocabulary = text.chat_tokenizer()
    return diffusers.Flux2KleinPipeline(
        text_encoder=text.decoder("Qwen3ForCausalLM", vocabulary, layers=3),
        tokenizer=vocabulary,
        **flux_2_parts(guided=False),
    )


def chroma() -> Any:
    """FLUX.1 with modulations from one small network, T5 alone, and a mask over the text."""
    vocabulary = text.t5_tokenizer()
    return diffusers.ChromaPipeline(
        transformer=transformer(
            diffusers.ChromaTransformer2DModel,
            in_channels=32,
            num_layers=2,
            num_single_layers=2,
            **HEADS,
            joint_attention_dim=text.WIDTH,
            axes_dims_rope=ROPE,
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=2,
        ),
        scheduler=flow(use_beta_sigmas=True),
        vae=kl16(),
        text_encoder=text.t5(vocabulary),
        tokenizer=vocabulary,
    )


def auraflow() -> Any:
    vocabulary = text.t5_tokenizer()
    return diffusers.AuraFlowPipeline(
        tokenizer=vocabulary,
        text_encoder=text.umt5(vocabulary),
        vae=kl(scaling_factor=0.13025),
        transformer=transformer(
            diffusers.AuraFlowTransformer2DModel,
            sample_size=8,
            num_mmdit_layers=2,
            num_single_dit_layers=2,
            **HEADS,
            joint_attention_dim=text.WIDTH,
            caption_projection_dim=32,
            pos_embed_max_size=16,
        ),
        scheduler=flow(shift=1.73),
    )


def pixart(sigma: bool) -> Any:
    """Betas, and a prediction that holds variances too; PixArt-alpha is told resolution and aspect ratio as well."""
    vocabulary = text.t5_tokenizer()
    kind = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    return kind(
        tokenizer=vocabulary,
        text_encoder=text.t5(vocabulary),
        vae=kl(),
        transformer=transformer(
            diffusers.PixArtTransformer2DModel,
            num_attention_heads=3,
            attention_head_dim=16,
            num_layers=3,
            cross_attention_dim=48,
            caption_channels=text.WIDTH,
            sample_size=64 if sigma else 128,  # at 128 the pipeline passes resolution and aspect ratio
            use_additional_conditions=not sigma,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=2e-2),
    )


def sana() -> Any:
    """Linear attention over the picture, cross-attention to a Gemma 2; a flow by the multistep solver."""
    vocabulary = text.gemma_tokenizer()
    return diffusers.SanaPipeline(
        tokenizer=vocabulary,
        text_encoder=text.decoder("Gemma2Model", vocabulary),
        vae=seeded(
            diffusers.AutoencoderDC,
            latent_channels=8,
            attention_head_dim=4,
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            encoder_layers_per_block=(1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1),
            encoder_qkv_multiscales=((), (), (), ()),
            decoder_qkv_multiscales=((), (), (), ()),
            scaling_factor=0.41407,
        ),
        transformer=transformer(
            diffusers.SanaTransformer2DModel,
            in_channels=8,
            out_channels=8,
            **HEADS,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=text.WIDTH,
            sample_size=8,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def lumina_2() -> Any:
    vocabulary = text.gemma_tokenizer(SYSTEM)
    return diffusers.Lumina2Pipeline(
        tokenizer=vocabulary,
        text_encoder=text.decoder("Gemma2Model", vocabulary),
        vae=kl16(),
        transformer=transformer(
            diffusers.Lumina2Transformer2DModel,
            sample_size=8,
            in_channels=8,
            hidden_size=48,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(64, 16, 16),
            cap_feat_dim=text.WIDTH,
        ),
        scheduler=flow(shift=6.0),
    )


def z_image() -> Any:
    """Takes lists of pictures and of captions, each of its own length, and says the negative of a velocity."""
    vocabulary = text.chat_tokenizer()
    return diffusers.ZImagePipeline(
        tokenizer=vocabulary,
        text_encoder=text.decoder("Qwen3Model", vocabulary),
        vae=kl16(),
        transformer=transformer(
            diffusers.ZImageTransformer2DModel,
            in_channels=8,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=text.WIDTH,
            axes_dims=list(ROPE),
            axes_lens=[256, 16, 16],
        ),
        scheduler=flow(shift=3.0),
    )


def qwen_image() -> Any:
    vocabulary = text.chat_tokenizer(text.DESCRIBE)
    return diffusers.QwenImagePipeline(
        tokenizer=vocabulary,
        text_encoder=text.qwen2_5_vl(vocabulary),
        vae=seeded(
            diffusers.AutoencoderKLQwenImage,
            base_dim=4,
            z_dim=8,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1 * i for i in range(8)],
            latents_std=[1.0 + 0.1 * i for i in range(8)],
        ),
        transformer=transformer(
            diffusers.QwenImageTransformer2DModel,
            in_channels=32,
            out_channels=8,
            num_layers=4,
            **HEADS,
            joint_attention_dim=text.WIDTH,
            axes_dims_rope=ROPE,
        ),
        scheduler=dynamic_flow(shift=1.0, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02),
    )


FAMILIES = (
    Family("stable_diffusion_3", stable_diffusion_3, SHORT),
    Family(
        "stable_diffusion_3_5", partial(stable_diffusion_3, dual_attention_layers=(0, 1), qk_norm="rms_norm"), SHORT
    ),
    Family("flux_1_dev", partial(flux, guided=True), SHORT),
    Family("flux_1_schnell", partial(flux, guided=False), SHORT),
    Family("flux_2", flux_2, SMALL | {"max_sequence_length": 64, "text_encoder_out_layers": (1, 2, 3)}),
    Family("flux_2_klein", flux_2_klein, SMALL | {"max_sequence_length": 24, "text_encoder_out_layers": (1, 2, 3)}),
    Family("chroma", chroma, SHORT),
    Family("auraflow", auraflow, SHORT),
    Family(
        "pixart_alpha", partial(pixart, sigma=False), SHORT | {"use_resolution_binning": False, "clean_caption": False}
    ),
    Family(
        "pixart_sigma", partial(pixart, sigma=True), SHORT | {"use_resolution_binning": False, "clean_caption": False}
    ),
    Family("sana", sana, SHORT | {"use_resolution_binning": False, "complex_human_instruction": None}),
    Family("lumina_2", lumina_2, SMALL | {"max_sequence_length": 48}),
    Family("z_image", z_image, SHORT),
    Family("qwen_image", qwen_image, SHORT),
)
