"""What a denoiser is trained and probed on: clean latents with their conditioning, from whatever the owner has."""

import io
import json
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import nn

from ..errors import DataError
from .inputs import LatentData, fitting
from .prompts import encode_prompts, unet_of
from .setup import denoiser_of


# What PIL raises on a file that is empty, cut, no image, or a bomb.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def autoencoder(pipe: Any) -> Any:
    """The pipeline's autoencoder under either of diffusers' names; None for a denoiser of pixels."""
    return getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)


def side_of(pipe: Any) -> int:
    """Pixels along a side of what the pipeline draws."""
    vae = autoencoder(pipe)
    factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
    return int(unet_of(pipe).config.sample_size) * factor


def _scale_latents(latents: torch.Tensor, vae: Any) -> torch.Tensor:
    """Latents as the denoiser sees them: by one factor, or by mean and spread of each channel where the VAE has them."""
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        latents = (latents - latents.new_tensor(mean).view(shape)) / latents.new_tensor(std).view(shape)
    return latents * vae.config.scaling_factor


@contextmanager
def _full_precision(vae: Any) -> Iterator[None]:
    """XL's VAE overflows in half precision, and says so by `force_upcast`: there it encodes in single."""
    dtype = None if vae is None else vae.dtype
    needed = dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    try:
        if needed:
            nn.Module.to(vae, torch.float32)  # diffusers' own `to` warns on the terminal, needlessly
        yield
    finally:
        if needed:
            nn.Module.to(vae, dtype)


@torch.no_grad()
def from_images(
    pipe: Any, images: Sequence[Any], captions: Sequence[str | None], *, max_unreadable: float = 0.1
) -> LatentData:
    """Images through the pipeline's own VAE (or as they are, for a denoiser of pixels) with their captions.

    Args:
        images: PIL images, paths, or `datasets`' undecoded `{"path", "bytes"}`. Other sizes than the model's are cropped to
            its proportions about the centre and resized. captions: as many; None counts as missing, and as empty.
        max_unreadable (`float`): share of unreadable images that is left out.
    Raises:
        DataError: more than that is unreadable, or nothing is left; the message names the first ones. As `encode_prompts`.
    Warns with the number of images left out (and their names), resized, or without caption.
    """
    encode_prompts(pipe, [""])  # what cannot be conditioned is refused before the work
    vae, side = autoencoder(pipe), side_of(pipe)
    from diffusers.image_processor import VaeImageProcessor

    processor = VaeImageProcessor(vae_scale_factor=1)  # images are of the model's size by then
    rows, kept, unreadable, resized = [], [], [], 0
    with _full_precision(vae):
        for number, (source, caption) in enumerate(zip(images, captions, strict=True)):
            try:
                image = _open_image(source).convert("RGB")
            except _UNREADABLE as error:
                unreadable.append(f"{_name_image(source, number)} ({error})")
                continue
            if image.size != (side, side):
                resized += 1
                image = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
            pixels = processor.preprocess(image)
            if vae is not None:
                encoded = vae.encode(pixels.to(vae.device, vae.dtype))
                pixels = _scale_latents(
                    encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean, vae
                )
            rows.append(pixels.float().cpu())
            kept.append(caption)
    if unreadable:
        named = f"{len(unreadable)} of {len(captions)} images cannot be read: {', '.join(unreadable[:5])}"
        if not rows or len(unreadable) > max_unreadable * len(captions):
            raise DataError(
                f"{named}; at most {max_unreadable:.0%} are skipped (max_unreadable): mend or remove them."
            )
        # Three levels up, for `no_grad` wraps this function.
        warnings.warn(f"{named}; skipped.", stacklevel=3)
    if not rows:
        raise DataError("no images: pass at least one.")
    if resized:
        warnings.warn(f"{resized} of {len(rows)} images were not {side}x{side}: cropped and resized.", stacklevel=3)
    missing = sum(not caption for caption in kept)
    if missing and hasattr(pipe, "encode_prompt"):
        warnings.warn(f"{missing} of {len(rows)} images have no caption: the empty prompt stands in.", stacklevel=3)
    return LatentData(torch.cat(rows), encode_prompts(pipe, [caption or "" for caption in kept]))


def _open_image(source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, Mapping):
        source = io.BytesIO(source["bytes"]) if source.get("bytes") is not None else source["path"]
    return Image.open(source)


def _name_image(source: Any, number: int) -> str:
    path = source.get("path") if isinstance(source, Mapping) else getattr(source, "filename", source)
    return str(path) if isinstance(path, str | Path) and str(path) else f"image {number}"


def image_rows(folder: str | Path) -> Any:
    """The rows of a `datasets` ImageFolder.

    Raises:
        DataError: not such a folder.
    """
    import datasets

    try:
        return datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    except Exception as error:  # datasets raises many kinds; the folder is what they have in common
        raise DataError(f"'{folder}' is not a readable folder of images ({error}).") from error


def from_folder(pipe: Any, folder: str | Path, *, max_unreadable: float = 0.1) -> LatentData:
    """A `datasets` ImageFolder; captions are the column `text` of its metadata.

    Raises:
        DataError: not such a folder, or as `from_images`.
    """
    import datasets

    rows = image_rows(folder)
    if "image" not in rows.column_names:
        raise DataError(f"'{folder}' holds no column 'image', only {rows.column_names}.")
    images = list(rows.cast_column("image", datasets.Image(decode=False))["image"])
    captions = list(rows["text"]) if "text" in rows.column_names else [None] * len(images)
    return from_images(pipe, images, captions, max_unreadable=max_unreadable)


@torch.no_grad()
def from_prompts(pipe: Any, prompts: Sequence[str], *, steps: int = 12, guidance: float = 3.0) -> LatentData:
    """Data-free: latents that the model itself samples for these prompts."""
    prompts = [prompt for prompt in prompts if isinstance(prompt, str) and prompt.strip()]
    if not prompts:
        raise DataError("no prompts: pass at least one that is not empty.")
    if not hasattr(pipe, "encode_prompt"):
        raise DataError(f"{type(pipe).__name__} takes no prompts: pass images or LatentData.")
    conditioning = encode_prompts(pipe, prompts)
    latents = []
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), 32):
        batch = list(prompts[start : start + 32])
        out = pipe(batch, num_inference_steps=steps, guidance_scale=guidance, output_type="latent")
        latents.append(out.images.float().cpu())
    return LatentData(torch.cat(latents), conditioning)


def vocabulary_prompts(pipe: Any, count: int = 256, seed: int = 0) -> list[str]:
    """Prompts of two random whole words of the tokenizer: what is left when an owner has no data at all."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary: Mapping[str, int] = getattr(getattr(pipe, "tokenizer", None), "get_vocab", dict)()
    # Whole words end in "</w>" with CLIP's tokenizer and begin with a low line block with T5's.
    whole = [w for w in vocabulary if w.endswith("</w>") or w.startswith("\u2581")]
    words = sorted(w.removesuffix("</w>").removeprefix("\u2581") for w in whole)
    words = [word for word in words if word.isalpha() and len(word) > 2]
    if not words:
        raise DataError(
            f"{type(pipe).__name__} has no tokenizer to take words from: pass prompts, images or LatentData."
        )
    picks = torch.randint(len(words), (count, 2), generator=generator).tolist()
    return [f"{words[a]} {words[b]}" for a, b in picks]


def prepare(pipe: Any, data: Any, *, max_unreadable: float = 0.1) -> LatentData:
    """Any data an owner may have, as latents.

    Args:
        pipe: the pipeline; a bare denoiser takes `LatentData` alone.
        data: `LatentData`, a file it saved, an image folder, a list of prompts (or a .txt or .json file of them), a list of
            `(image, caption)`, or None: the model makes its own latents for random words.
        max_unreadable (`float`): share of unreadable images that is skipped.
    Raises:
        DataError: of no known kind, missing, or unreadable.
    """
    if isinstance(data, LatentData):
        return fitting(data, denoiser_of(pipe))
    if isinstance(data, str | Path):
        path = Path(data)
        if path.is_file() and path.suffix == ".safetensors":
            return fitting(LatentData.load(path), denoiser_of(pipe))
        if path.is_file() and path.suffix in (".txt", ".json"):
            return from_prompts(pipe, read_prompts(path))
        if path.is_dir():
            return from_folder(pipe, path, max_unreadable=max_unreadable)
        raise DataError(f"no data at '{data}': pass an image folder, cached latents (.safetensors) or prompts (.txt).")
    if not hasattr(pipe, "scheduler"):
        raise DataError("a bare denoiser cannot make its own latents: pass data=LatentData(...), or a pipeline.")
    if data is None:
        return from_prompts(pipe, vocabulary_prompts(pipe))
    rows = list(data)
    if rows and all(isinstance(row, str) for row in rows):
        return from_prompts(pipe, rows)
    if rows and all(isinstance(row, tuple) and len(row) == 2 for row in rows):
        images, captions = zip(*rows, strict=True)
        return from_images(pipe, images, captions, max_unreadable=max_unreadable)
    raise DataError(f"data of type {type(data).__name__} is not understood: see `aiao_diffusers.data.prepare`.")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: a JSON list in `.json`, else one a line.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        text = path.read_text()
        prompts = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"the prompts in '{path}' cannot be read ({error}).") from error
    if not isinstance(prompts, list):
        raise DataError(f"'{path}' holds a {type(prompts).__name__}, expected a list of prompts.")
    return prompts
