"""What a denoiser is trained and probed on: clean latents with their conditioning, from whatever the owner has."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .errors import DataError


@dataclass(frozen=True)
class LatentData:
    """Clean latents and the conditioning that belongs to each.

    Args:
        latents (`torch.Tensor`): scaled as the denoiser sees them, `(N, C, H, W)`, float32.
        conditioning (`dict[str, torch.Tensor]`): the denoiser's keyword tensors, `(N, ...)` each; a dotted name such as
            `added_cond_kwargs.text_embeds` goes into a nested dictionary. Empty for unconditional denoisers.
    Raises:
        DataError: no latents, lengths differ, or a value is not finite.
    """

    latents: torch.Tensor
    conditioning: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        if self.latents.ndim < 3 or not len(self.latents):
            raise DataError(f"latents of shape {tuple(self.latents.shape)} hold no samples: pass at least one image.")
        for name, value in {"latents": self.latents, **self.conditioning}.items():
            if len(value) != len(self.latents):
                raise DataError(f"'{name}' has {len(value)} rows, the latents have {len(self.latents)}.")
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise DataError(f"'{name}' holds NaN or infinite values: check the images and the VAE.")

    def __len__(self) -> int:
        return len(self.latents)

    def take(self, index: torch.Tensor) -> "LatentData":
        """The rows `index`."""
        return LatentData(self.latents[index], {name: value[index] for name, value in self.conditioning.items()})

    def keywords(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Conditioning as the denoiser's keyword arguments."""
        result: dict[str, Any] = {}
        for name, value in self.conditioning.items():
            value = value.to(device, dtype) if value.is_floating_point() else value.to(device)
            outer, _, inner = name.partition(".")
            if inner:
                result.setdefault(outer, {})[inner] = value
            else:
                result[outer] = value
        return result

    def save(self, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Cache as safetensors, floating point in `dtype`."""
        tensors = {"latents": self.latents, **{f"cond.{name}": value for name, value in self.conditioning.items()}}
        save_file(
            {n: (v.to(dtype) if v.is_floating_point() else v).contiguous() for n, v in tensors.items()}, str(path)
        )

    @classmethod
    def load(cls, path: str | Path) -> "LatentData":
        """Read what `save` wrote; floating point comes back as float32."""
        try:
            with safe_open(str(path), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except Exception as error:  # safetensors raises its own class, a plain Exception
            raise DataError(f"'{path}' cannot be read as cached latents ({error}).") from error
        if "latents" not in tensors:
            raise DataError(
                f"'{path}' has no tensor 'latents', only {sorted(tensors)[:5]}: was it made by LatentData?"
            )
        tensors = {n: v.float() if v.is_floating_point() else v for n, v in tensors.items()}
        latents = tensors.pop("latents")
        return cls(latents, {name.removeprefix("cond."): value for name, value in tensors.items()})


@torch.no_grad()
def encode_prompts(pipe: Any, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Conditioning of a Stable Diffusion pipeline for these prompts."""
    if not hasattr(pipe, "encode_prompt"):
        return {}
    batches = [prompts[i : i + 64] for i in range(0, len(prompts), 64)]
    device = pipe.device
    parts = [pipe.encode_prompt(list(batch), device, 1, False)[0] for batch in batches]
    return {"encoder_hidden_states": torch.cat(parts).float().cpu()}


@torch.no_grad()
def from_images(pipe: Any, images: Sequence[Any], captions: Sequence[str]) -> LatentData:
    """PIL images through the pipeline's own VAE (or as they are, for a denoiser of pixels) and captions."""
    size = pipe.unet.config.sample_size
    vae = getattr(pipe, "vae", None)
    factor = pipe.vae_scale_factor if vae is not None else 1
    from diffusers.image_processor import VaeImageProcessor

    processor = VaeImageProcessor(vae_scale_factor=factor)
    rows = []
    for image in images:
        pixels = processor.preprocess(image.convert("RGB"), height=size * factor, width=size * factor)
        if vae is not None:
            pixels = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean * vae.config.scaling_factor
        rows.append(pixels.float().cpu())
    return LatentData(torch.cat(rows), encode_prompts(pipe, captions))


def from_folder(pipe: Any, folder: str | Path) -> LatentData:
    """A `datasets` ImageFolder; captions from the column `text` of its metadata, else empty."""
    from datasets import load_dataset

    try:
        rows = load_dataset("imagefolder", data_dir=str(folder), split="train")
        images = list(rows["image"])
    except Exception as error:  # datasets and PIL raise many kinds; the folder is what they have in common
        raise DataError(f"'{folder}' is not a readable folder of images ({error}).") from error
    captions = list(rows["text"]) if "text" in rows.column_names else [""] * len(images)
    return from_images(pipe, images, captions)


@torch.no_grad()
def from_prompts(pipe: Any, prompts: Sequence[str], *, steps: int = 12, guidance: float = 3.0) -> LatentData:
    """Data-free: latents that the model itself samples for these prompts."""
    if not prompts:
        raise DataError("an empty list of prompts gives no training data.")
    latents = []
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), 32):
        batch = list(prompts[start : start + 32])
        out = pipe(batch, num_inference_steps=steps, guidance_scale=guidance, output_type="latent")
        latents.append(out.images.float().cpu())
    return LatentData(torch.cat(latents), encode_prompts(pipe, prompts))


def vocabulary_prompts(pipe: Any, count: int = 256, seed: int = 0) -> list[str]:
    """Prompts of two random whole words of the tokenizer: what is left when an owner has no data at all."""
    generator = torch.Generator().manual_seed(seed)
    words = sorted(w.removesuffix("</w>") for w in pipe.tokenizer.get_vocab() if w.endswith("</w>"))
    words = [word for word in words if word.isalpha() and len(word) > 2]
    picks = torch.randint(len(words), (count, 2), generator=generator).tolist()
    return [f"{words[a]} {words[b]}" for a, b in picks]


def prepare(pipe: Any, data: Any) -> LatentData:
    """Any data an owner may have, as latents.

    Args:
        pipe: the pipeline; a bare denoiser takes `LatentData` alone.
        data: `LatentData`, a file it saved, an image folder, a list of prompts, a list of `(image, caption)`, or None.
    Raises:
        DataError: of no known kind, missing, or unreadable.
    """
    if isinstance(data, LatentData):
        return data
    if isinstance(data, str | Path):
        path = Path(data)
        if path.is_file() and path.suffix == ".safetensors":
            return LatentData.load(path)
        if path.is_file() and path.suffix in (".txt", ".json"):
            text = path.read_text()
            return from_prompts(pipe, json.loads(text) if path.suffix == ".json" else text.splitlines())
        if path.is_dir():
            return from_folder(pipe, path)
        raise DataError(f"no data at '{data}': pass an image folder, cached latents (.safetensors) or prompts (.txt).")
    if not hasattr(pipe, "scheduler"):
        raise DataError("a bare denoiser cannot make its own latents: pass data=LatentData(...), or a pipeline.")
    if data is None:
        return from_prompts(pipe, vocabulary_prompts(pipe))
    rows = list(data)
    if rows and all(isinstance(row, str) for row in rows):
        return from_prompts(pipe, rows)
    if rows and all(isinstance(row, tuple) and len(row) == 2 for row in rows):
        return from_images(pipe, [image for image, _ in rows], [caption for _, caption in rows])
    raise DataError(f"data of type {type(data).__name__} is not understood: see `aiao_diffusers.data.prepare`.")
