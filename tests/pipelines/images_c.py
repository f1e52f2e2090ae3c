"""Families of images whose denoiser is a transformer, the third part: those of more than one or of rarer text encoders."""

from typing import Any

import diffusers
import transformers

from . import text
from .family import Family, seeded, transformer
from .images_a import HEADS, SHORT, SMALL
from .parts import flow, kl, kl16


def hunyuan_dit() -> Any:
    """BERT and T5 at their full lengths, a style and the picture's size, v-prediction and variances, skips between blocks."""
    vocabularies = [text.tokenizer(bos="[CLS]", eos="[SEP]"), text.t5_tokenizer(max_length=256)]
    return diffusers.HunyuanDiTPipeline(
        vae=kl(scaling_factor=0.13025),
        text_encoder=text.bert(vocabularies[0]),
        tokenizer=vocabularies[0],
        transformer=transformer(
            diffusers.HunyuanDiT2DModel,
            **HEADS,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=32,
            num_layers=4,
            cross_attention_dim=text.WIDTH,
            cross_attention_dim_t5=text.WIDTH,
            pooled_projection_dim=16,
            mlp_ratio=2.0,
        ),
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.018,
            clip_sample=False,
            prediction_type="v_prediction",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=text.t5(vocabularies[1]),
        tokenizer_2=vocabularies[1],
    )


def hunyuan_image() -> Any:
    """A Qwen 2.5 with eyes, and a byte-level T5 for quoted text, whose states are zero without it."""
    vocabulary = text.chat_tokenizer(text.DESCRIBE)
    letters = transformers.ByT5Tokenizer()
    return diffusers.HunyuanImagePipeline(
        tokenizer=vocabulary,
        text_encoder=text.qwen2_5_vl(vocabulary, layers=3),
        tokenizer_2=letters,
        text_encoder_2=text.t5(letters),
        vae=seeded(
            diffusers.AutoencoderKLHunyuanImage,
            in_channels=3,
            out_channels=3,
            latent_channels=16,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            spatial_compression_ratio=8,
            sample_size=64,
            scaling_factor=0.75289,
        ),
        transformer=transformer(
            diffusers.HunyuanImageTransformer2DModel,
            in_channels=16,
            out_channels=16,
            **HEADS,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            text_embed_dim=text.WIDTH,
            text_embed_2_dim=text.WIDTH,
            rope_axes_dim=(8, 8),
        ),
        scheduler=flow(shift=5.0),
    )


def cogview_3() -> Any:
    vocabulary = text.t5_tokenizer()
    return diffusers.CogView3PlusPipeline(
        tokenizer=vocabulary,
        text_encoder=text.t5(vocabulary),
        vae=kl(latent_channels=8, scaling_factor=1.0),
        transformer=transformer(
            diffusers.CogView3PlusTransformer2DModel,
            in_channels=8,
            out_channels=8,
            num_layers=4,
            **HEADS,
            text_embed_dim=text.WIDTH,
            time_embed_dim=16,
            condition_dim=8,
            pos_embed_max_size=8,
            sample_size=8,
        ),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            set_alpha_to_one=True,
            snr_shift_scale=4.0,
            timestep_spacing="trailing",
        ),
    )


def cogview_4() -> Any:
    """A GLM, whose padding goes in front."""
    vocabulary = text.tokenizer(bos="<sop>", eos=None, padding_side="left", max_length=1024)
    return diffusers.CogView4Pipeline(
        tokenizer=vocabulary,
        text_encoder=text.decoder("GlmModel", vocabulary),
        vae=kl(latent_channels=8, scaling_factor=1.0),
        transformer=transformer(
            diffusers.CogView4Transformer2DModel,
            in_channels=8,
            out_channels=8,
            num_layers=4,
            **HEADS,
            text_embed_dim=text.WIDTH,
            time_embed_dim=16,
            condition_dim=8,
            pos_embed_max_size=8,
            sample_size=8,
            rope_axes_dim=(16, 16),
        ),
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
    )


def hidream() -> Any:
    """Two CLIPs, a T5 and every hidden state of a Llama, which lie before the batch; experts chosen by token."""
    vocabularies = [text.clip_tokenizer(), text.clip_tokenizer(), text.t5_tokenizer(), text.llama_tokenizer()]
    return diffusers.HiDreamImagePipeline(
        scheduler=flow(shift=3.0),
        vae=kl16(),
        text_encoder=text.clip(vocabularies[0], projection=True),
        tokenizer=vocabularies[0],
        text_encoder_2=text.clip(vocabularies[1], projection=True),
        tokenizer_2=vocabularies[1],
        text_encoder_3=text.t5(vocabularies[2]),
        tokenizer_3=vocabularies[2],
        text_encoder_4=text.decoder("LlamaForCausalLM", vocabularies[3], layers=3),
        tokenizer_4=vocabularies[3],
        transformer=transformer(
            diffusers.HiDreamImageTransformer2DModel,
            patch_size=2,
            in_channels=8,
            num_layers=2,
            num_single_layers=2,
            **HEADS,
            caption_channels=[text.WIDTH, text.WIDTH],
            text_emb_dim=2 * text.WIDTH,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(8, 8),
            llama_layers=[0, 1, 2, 2],
        ),
    )


def kandinsky_5_image() -> Any:
    """A transformer of videos for one frame, channels last; a Qwen 2.5 with eyes behind its processor, and a CLIP."""
    vocabularies = [text.chat_tokenizer(text.ENGINEER), text.clip_tokenizer()]
    return diffusers.Kandinsky5T2IPipeline(
        transformer=transformer(
            diffusers.Kandinsky5Transformer3DModel,
            in_visual_dim=8,
            out_visual_dim=8,
            in_text_dim=text.WIDTH,
            in_text_dim2=text.WIDTH,
            time_dim=16,
            model_dim=32,
            ff_dim=64,
            num_text_blocks=1,
            num_visual_blocks=3,
            axes_dims=(4, 6, 6),
        ),
        vae=kl16(),
        text_encoder=text.qwen2_5_vl(vocabularies[0]),
        tokenizer=vocabularies[0],
        text_encoder_2=text.clip(vocabularies[1]),
        tokenizer_2=vocabularies[1],
        scheduler=flow(shift=5.0),
    )


def lumina_next() -> Any:
    """The first Lumina; its attention modules hand out four axes."""
    vocabulary = text.gemma_tokenizer()
    return diffusers.LuminaPipeline(
        tokenizer=vocabulary,
        text_encoder=text.decoder("GemmaModel", vocabulary),
        vae=kl(scaling_factor=0.13025),
        transformer=transformer(
            diffusers.LuminaNextDiT2DModel,
            sample_size=8,
            hidden_size=32,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=text.WIDTH,
        ),
        scheduler=flow(shift=1.0),
    )


def dit() -> Any:
    """Of ImageNet's classes instead of prompts."""
    return diffusers.DiTPipeline(
        transformer=transformer(diffusers.DiTTransformer2DModel, **HEADS, out_channels=8, num_layers=4, sample_size=8),
        vae=kl(),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )


def stable_cascade() -> Any:
    """The prior of Stable Cascade: a U-Net whose scheduler has neither betas nor the sigmas of a flow."""
    vocabulary = text.clip_tokenizer()
    return diffusers.StableCascadePriorPipeline(
        tokenizer=vocabulary,
        text_encoder=text.clip(vocabulary, projection=True),
        prior=seeded(
            diffusers.StableCascadeUNet,
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=16,
            conditioning_dim=32,
            block_out_channels=(32, 32),
            num_attention_heads=(4, 4),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            clip_text_in_channels=text.WIDTH,
            clip_text_pooled_in_channels=text.WIDTH,
            clip_image_in_channels=text.WIDTH,
            dropout=(0.0, 0.0),
            switch_level=(False,),
        ),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


FAMILIES = (
    Family("hunyuan_dit", hunyuan_dit, SMALL | {"use_resolution_binning": False}),
    Family(
        "hunyuan_image", hunyuan_image, SMALL, attributes={"tokenizer_max_length": 24, "tokenizer_2_max_length": 16}
    ),
    Family("cogview_3_plus", cogview_3, SHORT),
    Family("cogview_4", cogview_4, SHORT),
    Family("hidream", hidream, SHORT, attributes={"default_sample_size": 8}),
    Family("kandinsky_5_image", kandinsky_5_image, SHORT, attributes={"resolutions": [(64, 64)]}),
    Family("lumina_next", lumina_next, SMALL | {"clean_caption": False}, attributes={"max_sequence_length": 16}),
    Family("dit", dit, {"class_labels": [1, 2, 3]}, rows=("class_labels",)),
    Family("stable_cascade", stable_cascade, {"height": 256, "width": 256}),
)
