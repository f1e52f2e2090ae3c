"""Prompts as the keyword tensors of a denoiser, whatever its family: `condition` is the one place that decides how.

U-Nets of Stable Diffusion 1, 2 and XL are conditioned by `encode_prompts`, which runs the text encoders alone: records hold what it
gives, bit for bit. Everything else is conditioned by what the pipeline was seen to give its denoiser (`capture`).
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import DataError
from .call import UNET_CALL, DenoiserCall
from .capture import Captured, capture_rows, learn


BATCH = 64  # prompts a forward of the text encoders
SIZES = 6  # numbers of XL's micro-conditioning: original size, crop corner, target size
_ADVICE = "pass LatentData with the conditioning that its denoiser takes."


def unet_of(pipe: Any) -> Any:
    """The U-Net that images and prompts are encoded for.

    Raises:
        DataError: the pipeline has none.
    """
    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise DataError(
            f"{type(pipe).__name__} has no U-Net, for which alone images and prompts are encoded: {_ADVICE}"
        )
    return unet


def is_encoded(pipe: Any) -> bool:
    """Whether `encode_prompts` conditions this pipeline's U-Net, so that no call has to be learnt."""
    unet = getattr(pipe, "unet", None)
    if unet is None:
        return False
    config, taken = unet.config, inspect.signature(unet.forward).parameters
    if not hasattr(pipe, "encode_prompt"):
        return "encoder_hidden_states" not in taken
    known = getattr(config, "addition_embed_type", "none of these") in (None, "text", "text_time")
    return known and getattr(config, "time_cond_proj_dim", None) is None


def condition(
    pipe: Any, prompts: Sequence[str], *, options: Mapping[str, Any] | None = None, learnt: Captured | None = None
) -> tuple[Mapping[str, torch.Tensor], DenoiserCall]:
    """Conditioning for these prompts, one row each, float32 on the CPU, and the call that it belongs to.

    `LatentData(latents, *condition(pipe, prompts))` are data for any denoiser; latents are in the shape and scale of the scheduler's
    sample (`learn(pipe).data.latents` has an example).

    Args:
        pipe: the pipeline. prompts: as many as there will be latents.
        options (`Mapping[str, Any]`, *optional*): for the pipeline's call, such as height and width, where a call has to be learnt.
        learnt (`Captured`, *optional*): what `learn` returned; by default it is learnt here.
    Raises:
        DataError: as `encode_prompts`, or as `learn` and `capture_rows`. ConfigError: as `learn`.
    """
    if learnt is None and is_encoded(pipe):
        return encode_prompts(pipe, prompts), UNET_CALL
    learnt = learnt or learn(pipe, options=options)
    taken = "prompt" in inspect.signature(type(pipe).__call__).parameters
    data = capture_rows(pipe, list(prompts) if taken else len(prompts), learnt)
    return data.conditioning, data.call


@torch.no_grad()
def encode_prompts(pipe: Any, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Conditioning for these prompts, one row each, float32 on the CPU; empty for pipelines that take none.

    XL's sizes are those that its pipeline assumes when it generates: the model's own, uncropped (our choice).

    Raises:
        DataError: the pipeline's denoiser is conditioned in another way.
    """
    if not hasattr(pipe, "encode_prompt"):
        return {}
    name, config = type(pipe).__name__, unet_of(pipe).config
    beside = getattr(config, "addition_embed_type", None)  # beside the text that cross-attention reads
    if beside not in (None, "text", "text_time"):
        raise DataError(f"{name} conditions its U-Net on {beside!r} beside the text: {_ADVICE}")
    # By name: the order of these four differs between pipelines.
    parts = [
        pipe.encode_prompt(
            prompt=list(prompts[start : start + BATCH]),
            device=pipe.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        for start in range(0, len(prompts), BATCH)
    ]
    result = {"encoder_hidden_states": torch.cat([part[0] for part in parts]).float().cpu()}
    if beside == "text_time":
        pooled = torch.cat([part[2] for part in parts]).float().cpu()
        if config.projection_class_embeddings_input_dim != pooled.shape[1] + SIZES * config.addition_time_embed_dim:
            # XL's refiner: five numbers, the last of them a score of looks.
            raise DataError(f"{name} conditions its U-Net on other numbers than sizes and a crop: {_ADVICE}")
        side = float(config.sample_size * pipe.vae_scale_factor)
        result["added_cond_kwargs.text_embeds"] = pooled
        result["added_cond_kwargs.time_ids"] = torch.tensor([[side, side, 0.0, 0.0, side, side]] * len(pooled))
    return result
