"""What an attack costs the model: noise losses, and pictures compared by a CLIP model."""

import itertools
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from ...denoiser.encode import vocabulary_prompts
from ...denoiser.price import measure_price
from ...errors import DataError
from ..context import AttackContext, source_of
from .definition import QualitySpec


OTHER_SEED = 7919  # added to a seed: the second seed of the base, whose distance to the first is the floor


def cmmd(
    a: torch.Tensor, b: torch.Tensor, *, paired: bool = False, sigma: float = 10.0, scale: float = 1000.0
) -> float:
    """Squared maximum mean discrepancy of two sets of CLIP embeddings, unbiased.

    Args:
        a, b: `(N, D)` and `(M, D)`, of unit length; N, M >= 2. sigma: bandwidth of the Gaussian kernel.
        paired (`bool`): the n-th rows of both are of one prompt and so more alike than two of one set ever are; like each
            picture's pair with itself, such pairs are left out, or equal distributions would come out below 0.
    Returns:
        `float`: scaled by `scale`; 0 in the mean for one distribution, so it may be negative.
    Source: Jayasumana et al., "Rethinking FID", 2024, with their sigma and scale. They keep the diagonal terms; with
    sets as small as ours those would swamp the value, so they are left out.
    """

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.exp(-torch.cdist(x.double(), y.double()).square() / (2 * sigma**2))

    def off_diagonal(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        k = kernel(x, y)
        return (k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1))

    across = off_diagonal(a, b) if paired else kernel(a, b).mean()
    return scale * (off_diagonal(a, a) + off_diagonal(b, b) - 2 * across).item()


@lru_cache(maxsize=1)
def open_clip(name: str, places: tuple[Path, ...]) -> tuple[CLIPModel, CLIPTokenizer, tuple[list[float], list[float]]]:
    """The CLIP model of quality, its tokenizer, and the mean and spread that its pixels in [0, 1] are brought to.

    One without a preprocessor's configuration, such as the example's, takes pixels in [-1, 1].

    Raises:
        DataError: it is neither a folder here nor on the Hub, or no CLIP model.
    """
    source = source_of(name, places)
    try:
        model = CLIPModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True).eval()
        tokenizer = CLIPTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise DataError(
            f"no CLIP model at '{name}' ({error}): name its folder, or a repository on the Hub."
        ) from error
    try:
        processor = CLIPImageProcessor.from_pretrained(source)
    except OSError:
        return model, tokenizer, ([0.5] * 3, [0.5] * 3)
    return model, tokenizer, (list(processor.image_mean), list(processor.image_std))


@torch.no_grad()
def generate(
    denoiser: nn.Module, context: AttackContext, spec: QualitySpec, seed: int
) -> tuple[list[str], torch.Tensor]:
    """Prompts (none for an unconditional model), and pictures `(N, 3, H, W)` in [-1, 1]."""
    if not context.prompted:
        lines = [""]
    elif spec.prompts:
        lines = [line for line in context.find(spec.prompts).read_text().splitlines() if line.strip()]
    else:
        lines = vocabulary_prompts(context.pipe, spec.images, seed=1)
    prompts = list(itertools.islice(itertools.cycle(lines), spec.images))
    made = []
    for start in range(0, spec.images, 16):
        batch = prompts[start : start + 16]
        seeds = [seed * 100_003 + start + i for i in range(len(batch))]
        made.append(context.draw(denoiser, batch, seeds=seeds, steps=spec.steps, guidance=spec.guidance) * 2 - 1)
    return prompts if context.prompted else [], torch.cat(made)


@torch.no_grad()
def clip_embeddings(
    prompts: list[str], made: torch.Tensor, context: AttackContext, spec: QualitySpec
) -> dict[str, torch.Tensor]:
    """What the CLIP model makes of pictures `(N, 3, H, W)`.

    Returns:
        `image` and, where there are prompts, `text`: embeddings `(N, D)` of unit length; `features`: the hidden states of the
        vision tower, each token's of unit length, `(layers, N, tokens, width)` in half precision.
    """
    model, tokenizer, (mean, spread) = open_clip(spec.clip, context.places)
    side = model.config.vision_config.image_size
    pixels = F.interpolate(made, (side, side), mode="bilinear", antialias=True) / 2 + 0.5
    pixels = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(spread).view(3, 1, 1)
    out = model.vision_model(pixel_values=pixels, output_hidden_states=True)
    result = {
        "image": F.normalize(model.visual_projection(out.pooler_output), dim=-1),
        "features": torch.stack([F.normalize(states, dim=-1).half() for states in out.hidden_states]),
    }
    if prompts:
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        words = model.text_model(input_ids=tokens).pooler_output
        result["text"] = F.normalize(model.text_projection(words), dim=-1)
    return result


def pictures(denoiser: nn.Module, context: AttackContext, spec: QualitySpec, seed: int) -> dict[str, torch.Tensor]:
    """`clip_embeddings` of what `generate` makes."""
    return clip_embeddings(*generate(denoiser, context, spec, seed), context, spec)


def clip_score(embedded: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Mean cosine of pictures with their prompts, and its standard error over pictures."""
    cosines = (embedded["image"] * embedded["text"]).sum(1)
    return cosines.mean().item(), (cosines.std() / len(cosines) ** 0.5).item()


def perceptual(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Mean squared distance of unit features, over layers, tokens and pairs of pictures: 0 for equal ones, at most 4.

    Source: the idea of LPIPS (Zhang et al., 2018) on the CLIP model's vision tower, for LPIPS' own networks need a download;
    without its learned weights.
    """
    return (a["features"].float() - b["features"].float()).square().sum(-1).mean().item()


class Quality:
    """Measures suspects against one unmarked base; what is measured of the base is measured once.

    The floor is the distance of the base to itself with another seed: a suspect within it costs nothing visible.
    """

    def __init__(self, context: AttackContext, spec: QualitySpec) -> None:
        self.context, self.spec = context, spec
        self._made: dict[int, dict[str, torch.Tensor]] = {}

    def _of_base(self, seed: int) -> dict[str, torch.Tensor]:
        if seed not in self._made:
            self._made[seed] = pictures(self.context.base, self.context, self.spec, seed)
        return self._made[seed]

    def of(self, suspect: nn.Module, seed: int = 0) -> dict[str, Any]:
        """Noise losses on the owner's and the attacker's data against the base's; of pictures: CMMD to the base with another
        seed, CLIP-score where there are prompts, and the distance to the base with the same seed."""
        result: dict[str, Any] = {}
        if self.spec.samples:
            for name, data in (("owner", self.context.owner), ("data", self.context.data)):
                price = measure_price(
                    self.context.base, suspect, data, self.context.scheduler, samples=self.spec.samples, seed=seed
                )
                result[f"loss_{name}"], result[f"base_loss_{name}"] = price["loss_marked"], price["loss"]
                result[f"mse_ratio_{name}"], result[f"mse_ratio_{name}_ci"] = price["ratio"], price["ratio_ci"]
        if self.spec.images:
            here, same = pictures(suspect, self.context, self.spec, seed), self._of_base(seed)
            other = self._of_base(seed + OTHER_SEED)
            result |= {
                "cmmd": cmmd(here["image"], other["image"], paired="text" in here),
                "cmmd_paired": "text" in here,
                "perceptual": perceptual(here, same),
                "perceptual_two_seeds": perceptual(same, other),
                "images": self.spec.images,
            }
            if "text" in here:
                result["clip_score"], result["clip_score_se"] = clip_score(here)
        return result
