"""Families of images whose denoiser is a transformer, the second half."""

from typing import Any

import diffusers
import transformers
from diffusers.pipelines.prx import pipeline_prx

from . import text
from .family import Family, seeded, transformer
from .parts import dynamic_flow, flow, kl, kl16
from .videos import without_ftfy


SMALL = {"height": 64, "width": 64}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
STREAMS = {"num_layers": 2, "num_single_layers": 2, "joint_attention_dim": text.WIDTH, "axes_dims_rope": (4, 6, 6)}
"""Blocks with two streams and with one, as FLUX.1 has them."""


def krea_2() -> Any:
    """Several hidden states of a language model with eyes, on an axis of their own."""
    suffix = "<|im_end|>\n<|im_start|>assistant\n"
    vocabulary = text.chat_tokenizer(text.DESCRIBE, suffix)
    options = text.decoder_options(vocabulary, layers=4)
    options["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": text.WIDTH}
    config = transformers.Qwen3VLConfig(text_config=options, vision_config=vision)
    return diffusers.Krea2Pipeline(
        scheduler=dynamic_flow(),
        vae=seeded(diffusers.AutoencoderKLQwenImage, base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        text_encoder=text.of("Qwen3VLModel", config),
        tokenizer=vocabulary,
        transformer=transformer(
            diffusers.Krea2Transformer2DModel,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=64,
            timestep_embed_dim=16,
            text_hidden_dim=text.WIDTH,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=64,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        text_encoder_select_layers=(1, 2, 4),
    )


def ernie_image() -> Any:
    """Texts padded to the longest, with their lengths."""
    vocabulary = text.tokenizer(bos="<s>", eos=None)
    return diffusers.ErnieImagePipeline(
        transformer=transformer(
            diffusers.ErnieImageTransformer2DModel,
            hidden_size=32,
            num_attention_heads=2,
            num_layers=3,
            ffn_hidden_size=64,
            in_channels=16,
            out_channels=16,
            text_in_dim=text.WIDTH,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=seeded(
            diffusers.AutoencoderKLFlux2,
            block_out_channels=(4, 4, 4, 4),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=64,
        ),
        text_encoder=text.mistral3(vocabulary).model,
        tokenizer=vocabulary,
        scheduler=flow(shift=3.0),
    )


def longcat_image() -> Any:
    vocabulary = text.chat_tokenizer()
    return diffusers.LongCatImagePipeline(
        scheduler=dynamic_flow(),
        vae=kl(latent_channels=16, shift_factor=0.1159),
        text_encoder=text.qwen2_5_vl(vocabulary),
        tokenizer=vocabulary,
        text_processor=vocabulary,
        transformer=transformer(
            diffusers.LongCatImageTransformer2DModel,
            in_channels=64,
            pooled_projection_dim=text.WIDTH,
            **HEADS,
            **STREAMS,
        ),
    )


def bria() -> Any:
    vocabulary = text.t5_tokenizer()
    return diffusers.BriaPipeline(
        transformer=transformer(diffusers.BriaTransformer2DModel, in_channels=16, **HEADS, **STREAMS),
        scheduler=dynamic_flow(),
        vae=kl(shift_factor=0.0),
        text_encoder=text.t5(vocabulary),
        tokenizer=vocabulary,
    )


def bria_fibo() -> Any:
    """A hidden state of the language model for every block, as a list."""
    vocabulary = text.tokenizer(bos="<s>", eos=None)
    return diffusers.BriaFiboPipeline(
        transformer=transformer(
            diffusers.BriaFiboTransformer2DModel,
            in_channels=16,
            text_encoder_dim=text.WIDTH,
            **HEADS,
            **STREAMS | {"joint_attention_dim": 2 * text.WIDTH},
        ),
        scheduler=dynamic_flow(),
        vae=seeded(
            diffusers.AutoencoderKLWan,
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            scale_factor_spatial=16,
        ),
        text_encoder=text.decoder("SmolLM3ForCausalLM", vocabulary, layers=4),
        tokenizer=vocabulary,
    )


def ovis_image() -> Any:
    vocabulary = text.chat_tokenizer(diffusers.OvisImagePipeline(None, None, None, None, None).system_prompt)
    return diffusers.OvisImagePipeline(
        scheduler=dynamic_flow(),
        vae=kl16(),
        text_encoder=text.decoder("Qwen3Model", vocabulary),
        tokenizer=vocabulary,
        transformer=transformer(
            diffusers.OvisImageTransformer2DModel, in_channels=32, out_channels=32, **HEADS, **STREAMS
        ),
    )


def prx() -> Any:
    """The encoder of a T5Gemma."""
    without_ftfy(pipeline_prx)
    vocabulary = text.gemma_tokenizer(max_length=16)
    half = transformers.T5GemmaModuleConfig(**text.decoder_options(vocabulary))
    config = transformers.T5GemmaConfig(encoder=half, decoder=half, vocab_size=len(vocabulary))
    return diffusers.PRXPipeline(
        transformer=transformer(
            diffusers.PRXTransformer2DModel,
            in_channels=8,
            context_in_dim=text.WIDTH,
            hidden_size=32,
            mlp_ratio=2.0,
            num_heads=2,
            depth=3,
            axes_dim=[8, 8],
        ),
        scheduler=flow(shift=3.0),
        text_encoder=text.of("T5GemmaForConditionalGeneration", config).model.encoder,
        tokenizer=vocabulary,
        vae=kl16(),
        default_sample_size=64,
    )


FAMILIES: tuple[Family, ...] = (
    Family("krea_2", krea_2, SMALL | {"max_sequence_length": 24}),
    Family("ernie_image", ernie_image, SMALL),
    Family(
        "longcat_image",
        longcat_image,
        SMALL | {"enable_prompt_rewrite": False},
        attributes={"tokenizer_max_length": 16},
    ),
    Family("bria", bria, SMALL | {"max_sequence_length": 16}),
    Family("bria_fibo", bria_fibo, SMALL | {"max_sequence_length": 16, "negative_prompt": "grey"}),
    Family("ovis_image", ovis_image, SMALL | {"max_sequence_length": 24}),
    # With guidance it takes one prompt alone: its time has two rows, for any number of prompts.
    Family(
        "prx",
        prx,
        SMALL | {"use_resolution_binning": False, "guidance_scale": 1.0},
        unloadable="of T5Gemma's two halves diffusers saves the config of one and loads that of both",
    ),
)
