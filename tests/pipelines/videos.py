"""Families of videos: two latent frames, or as few as the pipeline makes, of four tokens or so."""

from types import ModuleType, SimpleNamespace
from typing import Any

import diffusers
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from diffusers.pipelines.skyreels_v2 import pipeline_skyreels_v2
from torch import nn

from . import text
from .family import Family, seeded, transformer


CLIP = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
"""Options of most families: four times four latents, in two frames."""

LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def without_ftfy(module: ModuleType) -> None:
    """Some pipelines call `ftfy` whether it is there or not; without it, they leave texts as they are."""
    vars(module).setdefault("ftfy", SimpleNamespace(fix_text=str))


def unipc(shift: float) -> diffusers.UniPCMultistepScheduler:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def words() -> dict[str, Any]:
    """Tokenizer and T5."""
    vocabulary = text.t5_tokenizer()
    return {"tokenizer": vocabulary, "text_encoder": text.t5(vocabulary)}


def wan_parts(shift: float = 3.0) -> dict[str, Any]:
    """All that Wan and its kin have beside the denoiser."""
    vocabulary = text.t5_tokenizer()
    vae = seeded(diffusers.AutoencoderKLWan, base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    encoder = text.umt5(vocabulary)
    return {"tokenizer": vocabulary, "text_encoder": encoder, "vae": vae, "scheduler": unipc(shift)}


WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 3,
    "rope_max_seq_len": 32,
}


def wan() -> Any:
    return diffusers.WanPipeline(transformer=transformer(diffusers.WanTransformer3DModel, **WAN), **wan_parts())


def wan_2_2() -> Any:
    """Two denoisers: one for much noise, one for the rest."""
    high, low = (transformer(diffusers.WanTransformer3DModel, seed=seed, **WAN) for seed in (0, 1))
    return diffusers.WanPipeline(transformer=high, transformer_2=low, boundary_ratio=0.875, **wan_parts())


def skyreels_v2() -> Any:
    without_ftfy(pipeline_skyreels_v2)
    return diffusers.SkyReelsV2Pipeline(
        transformer=transformer(diffusers.SkyReelsV2Transformer3DModel, **WAN), **wan_parts(8.0)
    )


def ltx() -> Any:
    vae = seeded(
        diffusers.AutoencoderKLLTXVideo,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    denoiser = transformer(
        diffusers.LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=32,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
    )
    return diffusers.LTXPipeline(vae=vae, transformer=denoiser, scheduler=scheduler, **words())


def hunyuan_vae() -> nn.Module:
    return seeded(
        diffusers.AutoencoderKLHunyuanVideo,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


HUNYUAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": 32,
    "rope_axes_dim": (4, 6, 6),
}


def hunyuan_video() -> Any:
    template = DEFAULT_PROMPT_TEMPLATE["template"].split("{}")
    words = text.tokenizer(*template, bos="<|begin_of_text|>", eos=None, markers=LLAMA, max_length=512)
    pooled = text.clip_tokenizer()
    denoiser = transformer(
        diffusers.HunyuanVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_single_layers=2,
        pooled_projection_dim=32,
        **HUNYUAN,
    )
    return diffusers.HunyuanVideoPipeline(
        tokenizer=words,
        text_encoder=text.decoder("LlamaModel", words, layers=4),
        tokenizer_2=pooled,
        text_encoder_2=text.clip(pooled),
        transformer=denoiser,
        vae=hunyuan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def hunyuan_video_1_5() -> Any:
    words, glyphs = text.chat_tokenizer(), text.t5_tokenizer(max_length=256)
    denoiser = transformer(
        diffusers.HunyuanVideo15Transformer3DModel,
        in_channels=9,
        out_channels=4,
        text_embed_2_dim=32,
        image_embed_dim=16,
        target_size=32,
        task_type="t2v",
        **HUNYUAN,
    )
    vae = seeded(
        diffusers.AutoencoderKLHunyuanVideo15,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
    )
    return diffusers.HunyuanVideo15Pipeline(
        tokenizer=words,
        text_encoder=text.qwen2_5_vl(words, layers=4).model.language_model,
        tokenizer_2=glyphs,
        text_encoder_2=text.t5(glyphs),
        transformer=denoiser,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=6.0),
    )


def mochi() -> Any:
    vae = seeded(
        diffusers.AutoencoderKLMochi,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    denoiser = transformer(
        diffusers.MochiTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        pooled_projection_dim=32,
        text_embed_dim=32,
        time_embed_dim=8,
        max_sequence_length=16,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return diffusers.MochiPipeline(vae=vae, transformer=denoiser, scheduler=scheduler, **words())


def cogvideox() -> Any:
    vae = seeded(
        diffusers.AutoencoderKLCogVideoX,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    denoiser = transformer(
        diffusers.CogVideoXTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=32,
        num_layers=3,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )
    scheduler = diffusers.CogVideoXDPMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0, timestep_spacing="trailing"
    )
    return diffusers.CogVideoXPipeline(vae=vae, transformer=denoiser, scheduler=scheduler, **words())


def allegro() -> Any:
    vae = seeded(
        diffusers.AutoencoderKLAllegro,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    denoiser = transformer(
        diffusers.AllegroTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=3,
        cross_attention_dim=48,
        sample_width=4,
        sample_height=4,
        sample_frames=2,
        caption_channels=32,
    )
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    return diffusers.AllegroPipeline(vae=vae, transformer=denoiser, scheduler=scheduler, **words())


def latte() -> Any:
    vae = seeded(diffusers.AutoencoderKL, block_out_channels=(8,), norm_num_groups=4)
    denoiser = transformer(
        diffusers.LatteTransformer3DModel,
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=32,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=2,
    )
    return diffusers.LattePipeline(vae=vae, transformer=denoiser, scheduler=diffusers.DDIMScheduler(), **words())


HUNYUAN_1_5 = {
    "system_message": "a",
    "prompt_template_encode_start_idx": 6,
    "tokenizer_max_length": 16,
    "tokenizer_2_max_length": 16,
    "vision_num_semantic_tokens": 4,
}
"""Otherwise a thousand tokens of text and 729 of a picture that is not there."""

FAMILIES: tuple[Family, ...] = (
    Family("wan", wan, CLIP, video=True),
    Family("wan_2_2", wan_2_2, CLIP, video=True),
    Family("skyreels_v2", skyreels_v2, CLIP, video=True),
    Family("ltx", ltx, CLIP | {"height": 64, "width": 64, "num_frames": 9}, video=True),
    Family("hunyuan_video", hunyuan_video, CLIP, video=True),
    Family(
        "hunyuan_video_1_5",
        hunyuan_video_1_5,
        {"height": 64, "width": 64, "num_frames": 5},
        video=True,
        undrawable="its autoencoder decodes one video at a time",
        attributes=HUNYUAN_1_5,
    ),
    Family("mochi", mochi, CLIP | {"num_frames": 7}, video=True),
    Family("cogvideox", cogvideox, CLIP, video=True),
    Family(
        "allegro",
        allegro,
        CLIP | {"clean_caption": False},
        video=True,
        undrawable="its autoencoder decodes tiles of 320 pixels",
    ),
    Family("latte", latte, {"height": 8, "width": 8, "video_length": 2, "clean_caption": False}, video=True),
)
