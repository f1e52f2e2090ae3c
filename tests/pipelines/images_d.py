"""Families of images that are called in ways of their own: prompts as token ids, tokens drawn first."""

from inspect import signature
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from transformers import BatchFeature, PreTrainedTokenizerFast

from . import text
from .family import Family, transformer
from .parts import flow, kl


SMALL = {"height": 64, "width": 64}


def omnigen() -> Any:
    """No text encoder: the denoiser is a language model, and reads ids. It is always guided, so every row comes twice."""
    # What readies pictures is torchvision's; nobody shows it one.
    unused = SimpleNamespace(Compose=tuple, Lambda=id, ToTensor=object, Normalize=lambda **_: None)
    vars(processor_omnigen).setdefault("transforms", unused)
    vars(pipeline_omnigen).setdefault("OmniGenMultiModalProcessor", processor_omnigen.OmniGenMultiModalProcessor)
    asked = processor_omnigen.OmniGenMultiModalProcessor.add_prefix_instruction(None, "")
    refused = signature(processor_omnigen.OmniGenMultiModalProcessor.__call__).parameters["negative_prompt"].default
    vocabulary = text.tokenizer(asked, refused, bos="<s>", max_length=512)
    return diffusers.OmniGenPipeline(
        transformer=transformer(
            diffusers.OmniGenTransformer2DModel,
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=64,
            num_layers=3,
            pad_token_id=0,
            vocab_size=len(vocabulary),
            rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
            pos_embed_max_size=8,
            time_step_dim=16,
        ),
        scheduler=flow(invert_sigmas=True, num_train_timesteps=1),
        vae=kl(),
        tokenizer=vocabulary,
    )


class Questions:
    """Stands in for `GlmImageProcessor`, which readies pictures too: ids of the prompts, and the grids to be drawn."""

    def __init__(self, vocabulary: PreTrainedTokenizerFast) -> None:
        self.vocabulary = vocabulary

    def apply_chat_template(self, messages: list[Any], target_h: int, target_w: int, **_: Any) -> BatchFeature:
        asked = [message[0]["content"][0]["text"] for message in messages]
        encoded = self.vocabulary(asked, padding=True, return_tensors="pt")
        grids = torch.tensor([[1, target_h // 32, target_w // 32], [1, 1, 1]] * len(asked))
        return BatchFeature({**encoded, "image_grid_thw": grids, "images_per_sample": torch.tensor([2] * len(asked))})


def glm_image() -> Any:
    """A language model draws tokens of a coarse picture, the denoiser does the rest, with a cache for given pictures."""
    vocabulary, glyphs = text.chat_tokenizer(padding_side="left"), text.t5_tokenizer()
    options = text.decoder_options(vocabulary)
    del options["head_dim"]
    options |= {"vision_vocab_size": 16, "bos_token_id": None, "eos_token_id": None}
    options["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    config = transformers.GlmImageConfig(
        text_config=options,
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "image_size": 32},
        vq_config={"embed_dim": 8, "num_embeddings": 16, "latent_channels": 16},
        image_token_id=1,
        image_start_token_id=2,
        image_end_token_id=3,
    )
    drawer = text.of("GlmImageForConditionalGeneration", config)
    # Tokens are drawn at random: only logits that lie far apart let the prompt decide them.
    torch.nn.init.normal_(drawer.lm_head.weight, generator=torch.Generator().manual_seed(0))
    return diffusers.GlmImagePipeline(
        tokenizer=glyphs,
        processor=Questions(vocabulary),
        text_encoder=text.t5(glyphs),
        vision_language_encoder=drawer,
        vae=kl(latent_channels=8, latents_mean=[0.1] * 8, latents_std=[2.0] * 8),
        transformer=transformer(
            diffusers.GlmImageTransformer2DModel,
            in_channels=8,
            out_channels=8,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=text.WIDTH,
            time_embed_dim=16,
            condition_dim=8,
            prior_vq_quantizer_codebook_size=16,
        ),
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
    )


FAMILIES: tuple[Family, ...] = (
    Family("omnigen", omnigen, SMALL),
    Family("glm_image", glm_image, SMALL, unloadable="its processor readies pictures with torchvision"),
)
