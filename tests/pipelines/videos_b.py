"""Families of videos that came later, or whose scheduler, channels or text are their own."""

from typing import Any

import diffusers
import transformers
from diffusers.pipelines.helios import pipeline_helios

from . import text
from .family import Family, seeded, transformer
from .videos import CLIP, hunyuan_vae, wan_parts, without_ftfy, words


class Unwatched:
    """Stands in for the guardrail of Cosmos, which is a package of its own: every text and video is safe."""

    def to(self, *_: Any) -> "Unwatched":
        return self

    def check_text_safety(self, _: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


COSMOS = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "mlp_ratio": 2,
    "text_embed_dim": 32,
    "adaln_lora_dim": 4,
    "max_size": (4, 8, 8),
    "concat_padding_mask": False,  # what joins it to the latents is torchvision's
}


def cosmos() -> Any:
    """Its scheduler weighs noise as EDM does, and is asked twice a step."""
    vae = seeded(
        diffusers.AutoencoderKLCosmos,
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=16,
        num_layers=1,
        latents_mean=None,
        latents_std=None,
    )
    denoiser = transformer(diffusers.CosmosTransformer3DModel, in_channels=4, out_channels=4, **COSMOS)
    scheduler = diffusers.EDMEulerScheduler(
        sigma_min=0.002,
        sigma_max=80,
        sigma_data=0.5,
        sigma_schedule="karras",
        prediction_type="epsilon",
        rho=7.0,
        final_sigmas_type="sigma_min",
    )
    parts = {"vae": vae, "transformer": denoiser, "scheduler": scheduler, "safety_checker": Unwatched()}
    return diffusers.CosmosTextToWorldPipeline(**parts, **words())


def cosmos_2() -> Any:
    """Text to image; the pipeline turns the denoiser's answer into a velocity before the scheduler sees it."""
    parts = wan_parts() | {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)} | words()
    denoiser = transformer(diffusers.CosmosTransformer3DModel, extra_pos_embed_type=None, **COSMOS)
    return diffusers.Cosmos2TextToImagePipeline(transformer=denoiser, safety_checker=Unwatched(), **parts)


def cosmos_2_5() -> Any:
    """A time for every frame, five axes; a mask for frames that are given, beside the latents."""
    vocabulary = text.chat_tokenizer("You are a helpful assistant who will provide prompts to an image generator.")
    denoiser = transformer(
        diffusers.CosmosTransformer3DModel,
        in_channels=17,
        use_crossattn_projection=True,
        crossattn_proj_in_channels=2 * 32,
        encoder_hidden_states_channels=32,
        extra_pos_embed_type=None,
        **COSMOS,
    )
    parts = wan_parts() | {"tokenizer": vocabulary, "text_encoder": text.qwen2_5_vl(vocabulary)}
    return diffusers.Cosmos2_5_PredictBasePipeline(transformer=denoiser, safety_checker=Unwatched(), **parts)


def easyanimate() -> Any:
    vocabulary = text.chat_tokenizer()
    vae = seeded(
        diffusers.AutoencoderKLMagvit,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
    )
    denoiser = transformer(
        diffusers.EasyAnimateTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=4,
        sample_height=4,
        num_layers=2,
        mmdit_layers=2,
        time_embed_dim=16,
        add_norm_text_encoder=True,
        text_embed_dim=32,
    )
    return diffusers.EasyAnimatePipeline(
        vae=vae,
        tokenizer=vocabulary,
        text_encoder=text.qwen2_5_vl(vocabulary),
        transformer=denoiser,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
    )


def sana_video() -> Any:
    denoiser = transformer(
        diffusers.SanaVideoTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        rope_max_seq_len=32,
    )
    vocabulary = text.gemma_tokenizer()
    parts = wan_parts() | {"tokenizer": vocabulary, "text_encoder": text.decoder("Gemma2Model", vocabulary)}
    return diffusers.SanaVideoPipeline(transformer=denoiser, **parts)


def kandinsky_5_video() -> Any:
    """Channels last."""
    template = diffusers.Kandinsky5T2VPipeline(*[None] * 7).prompt_template
    vocabulary, pooled = text.chat_tokenizer(*template.split("{}")), text.clip_tokenizer()
    denoiser = transformer(
        diffusers.Kandinsky5Transformer3DModel,
        in_text_dim=32,
        in_text_dim2=32,
        time_dim=32,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    )
    return diffusers.Kandinsky5T2VPipeline(
        transformer=denoiser,
        vae=hunyuan_vae(),
        tokenizer=vocabulary,
        text_encoder=text.qwen2_5_vl(vocabulary),
        tokenizer_2=pooled,
        text_encoder_2=text.clip(pooled),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
    )


def helios() -> Any:
    """Chunk after chunk, each seeing those before it."""
    without_ftfy(pipeline_helios)
    denoiser = transformer(
        diffusers.HeliosTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_dim=(4, 6, 6),
    )
    scheduler = diffusers.HeliosScheduler(shift=1.0, stages=1, stage_range=[0, 1], use_dynamic_shifting=True)
    return diffusers.HeliosPipeline(transformer=denoiser, **wan_parts() | {"scheduler": scheduler})


def ltx_2() -> Any:
    """Video and sound at once; sound has a scheduler of its own, a copy."""
    vocabulary = text.tokenizer(bos="<bos>", eos="<eos>")
    options = text.decoder_options(vocabulary)
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(text_config=options, vision_config=vision, mm_tokens_per_image=4)
    vae = seeded(
        diffusers.AutoencoderKLLTX2Video,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        upsample_residual=(False, False, False),
        upsample_factor=(1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    sound = seeded(
        diffusers.AutoencoderKLLTX2Audio,
        base_channels=8,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=16,
    )
    connectors = seeded(
        diffusers.pipelines.ltx2.LTX2TextConnectors,
        caption_channels=32,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=16,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=16,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
    )
    denoiser = transformer(
        diffusers.LTX2VideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=16,
        audio_cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    vocoder = seeded(
        diffusers.pipelines.ltx2.LTX2Vocoder,
        in_channels=32,
        hidden_channels=8,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    return diffusers.LTX2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05
        ),
        vae=vae,
        audio_vae=sound,
        text_encoder=text.of("Gemma3ForConditionalGeneration", config),
        tokenizer=vocabulary,
        connectors=connectors,
        transformer=denoiser,
        vocoder=vocoder,
    )


LTX_2 = {
    "num_frames": 9,
    "height": 64,
    "width": 64,
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_scale": 1.0,
    "audio_guidance_rescale": 0.0,
}
"""One call of the denoiser a step, doubled by guidance; by default there are three."""

GUARD = "its guardrail is a package that is not there"
SANA = {"height": 32, "width": 32, "frames": 5, "max_sequence_length": 16, "use_resolution_binning": False}
PLAIN = {"negative_prompt": "grey"}
"""Instead of a default longer than the text may be."""

FAMILIES: tuple[Family, ...] = (
    Family("cosmos", cosmos, CLIP | PLAIN | {"num_frames": 9}, video=True, unloadable=GUARD),
    Family("cosmos_2", cosmos_2, PLAIN | {"height": 32, "width": 32, "max_sequence_length": 16}, unloadable=GUARD),
    Family("cosmos_2_5", cosmos_2_5, CLIP | PLAIN | {"max_sequence_length": 32}, video=True, unloadable=GUARD),
    # With guidance it takes a list of as many negative prompts as prompts.
    Family(
        "easyanimate", easyanimate, {"height": 32, "width": 32, "num_frames": 5, "guidance_scale": 1.0}, video=True
    ),
    Family("sana_video", sana_video, SANA | {"complex_human_instruction": []}, video=True),
    Family("kandinsky_5_video", kandinsky_5_video, CLIP | PLAIN, video=True),
    Family("helios", helios, CLIP | {"height": 64, "width": 64, "num_latent_frames_per_chunk": 2}, video=True),
    Family("ltx_2", ltx_2, LTX_2 | {"max_sequence_length": 16}, video=True),
)
