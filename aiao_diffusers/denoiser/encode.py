"""What a denoiser is trained and probed on: clean latents with their conditioning, from whatever the owner has."""

import io
import json
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from PIL import Image, ImageOps
from torch import nn

from ..errors import DataError
from .call import UNET_CALL, DenoiserCall
from .capture import BATCH, Captured, capture_rows, learn
from .inputs import LatentData, fitting
from .latents import autoencoder, check_pictures, full_precision, learn_latents, posterior_mean
from .prompts import encode_prompts, unet_of
from .recording import NotRunError
from .request import PROMPTS, ROWS, takes_prompts
from .setup import denoiser_of
from .sites import unwrap
from .tokens import check_encoders


VALUES = 2**20
"""Of the latents that are sampled at once: four of FLUX's pictures of 1024x1024, sixteen of a quarter of that."""
# What PIL raises on a file that is empty, cut, no image, or a bomb.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


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


def is_classic(pipe: Any) -> bool:
    """Whether images and prompts are encoded as for Stable Diffusion, without running the pipeline: it has a U-Net of the two
    plain classes, and an autoencoder that scales by its config or none. Every other pipeline is asked by `capture`."""
    unet = getattr(pipe, "unet", None)
    if unet is None or hasattr(pipe, "movq"):
        return False
    return not isinstance(unet, nn.Module) or isinstance(unwrap(unet), UNet2DModel | UNet2DConditionModel)


class _Ready(NamedTuple):
    """A pipeline that images can be encoded for.

    Args:
        size: width and height in pixels. encode: pixels `(1, 3, height, width)` as latents. condition: captions as keyword
            tensors, with the call that they are for.
    """

    size: tuple[int, int]
    encode: Callable[[torch.Tensor], torch.Tensor]
    condition: Callable[[Sequence[str]], tuple[Mapping[str, torch.Tensor], DenoiserCall]]


def _ready(pipe: Any, captions: Sequence[str], options: Mapping[str, Any] | None) -> _Ready:
    """Refuses, before any image is opened, what cannot be encoded or conditioned; some of `captions` are tried."""
    if is_classic(pipe) and not options:
        check_pictures(pipe, pixels=True)
        check_encoders(pipe)
        encode_prompts(pipe, [""])
        side, encode = side_of(pipe), partial(_encode_classic, autoencoder(pipe))
        return _Ready((side, side), encode, lambda captions: (encode_prompts(pipe, captions), UNET_CALL))
    check_pictures(pipe, options)
    if not takes_prompts(pipe):
        raise DataError(
            f"{type(pipe).__name__} takes no captions: pass LatentData with what its denoiser is conditioned on."
        )
    spoken = [caption for caption in captions if caption] or list(PROMPTS)
    learnt = learn(pipe, spoken[:ROWS], options=options)
    mapping = learn_latents(pipe, {**learnt.options, "prompt": spoken[:1]})
    if mapping.shape != learnt.data.latents.shape[1:]:
        raise DataError(
            f"{type(pipe).__name__} makes a picture of {tuple(mapping.shape)} and its denoiser works on "
            f"{tuple(learnt.data.latents.shape[1:])}: pass prompts, or LatentData with latents of your own."
        )

    def condition(captions: Sequence[str]) -> tuple[Mapping[str, torch.Tensor], DenoiserCall]:
        made = capture_rows(pipe, captions, learnt, batch=_batch(learnt))
        return made.conditioning, made.call

    if "" in captions:
        try:
            condition(["", spoken[0]])
        except NotRunError as error:
            raise DataError(
                f"{error}; that was with an empty prompt, which stands in for missing captions: give each image a caption."
            ) from error
    return _Ready(mapping.size, partial(mapping.encode, pipe), condition)


def _batch(learnt: Captured) -> int:
    """Rows that a pipeline draws at once: of large pictures and of videos few."""
    return max(1, min(BATCH, VALUES // learnt.data.latents[0].numel()))


def _encode_classic(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    return pixels if vae is None else _scale_latents(posterior_mean(vae.encode(pixels.to(vae.device, vae.dtype))), vae)


@torch.no_grad()
def from_images(
    pipe: Any,
    images: Sequence[Any],
    captions: Sequence[str | None],
    *,
    max_unreadable: float = 0.1,
    options: Mapping[str, Any] | None = None,
) -> LatentData:
    """Images through the pipeline's own VAE (or as they are, for a denoiser of pixels) with their captions.

    Args:
        images: PIL images, paths, or `datasets`' undecoded `{"path", "bytes"}`. Other sizes than the model's are cropped to
            its proportions about the centre and resized. captions: as many; None counts as missing, and as empty.
        max_unreadable (`float`): share of unreadable images that is left out.
        options (`Mapping[str, Any]`, *optional*): keywords of the pipeline's call, such as height and width; the default size is
            the one that the pipeline draws without them.
    Raises:
        DataError: more than that is unreadable, or nothing is left; the message names the first ones. The pipeline draws videos,
            has no autoencoder, or makes latents or conditioning in a way that is not understood.
    Warns with the number of images left out (and their names), resized, or without caption.
    """
    ready = _ready(
        pipe, [caption or "" for caption in captions], options
    )  # what cannot be conditioned is refused before the work
    from diffusers.image_processor import VaeImageProcessor

    processor = VaeImageProcessor(vae_scale_factor=1)  # images are of the model's size by then
    rows, kept, unreadable, resized = [], [], [], 0
    with full_precision(autoencoder(pipe)):
        for number, (source, caption) in enumerate(zip(images, captions, strict=True)):
            try:
                image = _open_image(source).convert("RGB")
            except _UNREADABLE as error:
                unreadable.append(f"{_name_image(source, number)} ({error})")
                continue
            if image.size != ready.size:
                resized += 1
                image = ImageOps.fit(image, ready.size, Image.Resampling.LANCZOS)
            rows.append(ready.encode(processor.preprocess(image)).float().cpu())
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
        size = "x".join(map(str, ready.size))
        warnings.warn(f"{resized} of {len(rows)} images were not {size}: cropped and resized.", stacklevel=3)
    missing = sum(not caption for caption in kept)
    if missing and (hasattr(pipe, "encode_prompt") or not is_classic(pipe)):
        warnings.warn(f"{missing} of {len(rows)} images have no caption: the empty prompt stands in.", stacklevel=3)
    return LatentData(torch.cat(rows), *ready.condition([caption or "" for caption in kept]))


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


def from_folder(
    pipe: Any, folder: str | Path, *, max_unreadable: float = 0.1, options: Mapping[str, Any] | None = None
) -> LatentData:
    """A `datasets` ImageFolder; captions are the column `text` of its metadata.

    Raises:
        DataError: not such a folder, or as `from_images`.
    """
    import datasets

    if not is_classic(pipe):
        check_pictures(pipe, options)  # before a folder is listed that may be large
    rows = image_rows(folder)
    if "image" not in rows.column_names:
        raise DataError(f"'{folder}' holds no column 'image', only {rows.column_names}.")
    images = list(rows.cast_column("image", datasets.Image(decode=False))["image"])
    captions = list(rows["text"]) if "text" in rows.column_names else [None] * len(images)
    return from_images(pipe, images, captions, max_unreadable=max_unreadable, options=options)


@torch.no_grad()
def from_prompts(
    pipe: Any,
    prompts: Sequence[str],
    *,
    steps: int = 12,
    guidance: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> LatentData:
    """Data-free: latents that the model itself samples for these prompts.

    Args:
        steps (`int`, defaults to 12): of sampling.
        guidance (`float`, *optional*): scale of classifier-free guidance; default 3 for Stable Diffusion's kind, else the
            pipeline's own.
        options (`Mapping[str, Any]`, *optional*): further keywords of the pipeline's call, such as height and width.
    Raises:
        DataError: no prompt, a pipeline that takes none, or as `capture.learn`.
    """
    prompts = [prompt for prompt in prompts if isinstance(prompt, str) and prompt.strip()]
    if not prompts:
        raise DataError("no prompts: pass at least one that is not empty.")
    # A pipeline of pixels has no latents to hand out: what its scheduler makes is listened to.
    classic = is_classic(pipe) and autoencoder(pipe) is not None and not options
    if not (hasattr(pipe, "encode_prompt") if classic else takes_prompts(pipe)):
        raise DataError(f"{type(pipe).__name__} takes no prompts: pass images or LatentData.")
    if not classic:
        learnt = learn(pipe, prompts[:ROWS], options=options)
        scale = True if guidance is None else guidance
        return capture_rows(pipe, prompts, learnt, steps=steps, guided=scale, batch=_batch(learnt))
    check_encoders(pipe)
    conditioning = encode_prompts(pipe, prompts)
    scale = 3.0 if guidance is None else guidance
    latents = []
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), 32):
        batch = list(prompts[start : start + 32])
        out = pipe(batch, num_inference_steps=steps, guidance_scale=scale, output_type="latent")
        latents.append(out.images.float().cpu())
    return LatentData(torch.cat(latents), conditioning)


def vocabulary_prompts(pipe: Any, count: int = 256, seed: int = 0) -> list[str]:
    """Prompts of two random whole words of the tokenizer: what is left when an owner has no data at all."""
    generator = torch.Generator().manual_seed(seed)
    words = next(filter(None, map(_whole_words, _vocabularies(pipe))), None)
    if not words:
        raise DataError(
            f"{type(pipe).__name__} has no tokenizer to take words from: pass prompts, images or LatentData."
        )
    picks = torch.randint(len(words), (count, 2), generator=generator).tolist()
    return [f"{words[a]} {words[b]}" for a, b in picks]


def _vocabularies(pipe: Any) -> Iterator[Mapping[str, int]]:
    """Of the pipeline's tokenizers, the main one first; processors of pictures and words hold theirs inside."""
    parts = {"tokenizer": getattr(pipe, "tokenizer", None), **getattr(pipe, "components", {})}
    for name, part in parts.items():
        tokenizer = getattr(part, "tokenizer", part)
        if ("tokenizer" in name or "processor" in name) and hasattr(tokenizer, "get_vocab"):
            yield tokenizer.get_vocab()


def _whole_words(vocabulary: Mapping[str, int]) -> list[str]:
    # Whole words end in "</w>" with CLIP's tokenizer and begin with a low line block with T5's, Gemma's and Llama 2's.
    whole = [w for w in vocabulary if w.endswith("</w>") or w.startswith("\u2581")]
    words = sorted(w.removesuffix("</w>").removeprefix("\u2581") for w in whole)
    if not whole:
        # Bytes of a byte-level one (Qwen's, Llama 3's, GLM's) are letters too: only ASCII is what it seems.
        words = sorted(w.removeprefix("\u0120") for w in vocabulary if w.startswith("\u0120"))
        words = [word for word in words if word.isascii()]
    return [word for word in words if word.isalpha() and len(word) > 2]


def prepare(
    pipe: Any, data: Any, *, max_unreadable: float = 0.1, options: Mapping[str, Any] | None = None
) -> LatentData:
    """Any data an owner may have, as latents.

    Args:
        pipe: the pipeline; a bare denoiser takes `LatentData` alone.
        data: `LatentData`, a file it saved, an image folder, a list of prompts (or a .txt or .json file of them), a list of
            `(image, caption)`, or None: the model makes its own latents for random words.
        max_unreadable (`float`): share of unreadable images that is skipped.
        options (`Mapping[str, Any]`, *optional*): keywords of the pipeline's call for images and prompts, such as
            `{"height": 512, "width": 512, "max_sequence_length": 128}`; default: the pipeline's own.
    Raises:
        DataError: of no known kind, missing, or unreadable; images for a pipeline of videos; options for cached latents.
    """
    path = Path(data) if isinstance(data, str | Path) else None
    if isinstance(data, LatentData) or (path is not None and path.is_file() and path.suffix == ".safetensors"):
        if options:
            raise DataError(f"cached latents are made already: leave the pipeline's options out, {sorted(options)}.")
        return fitting(data if path is None else LatentData.load(path), denoiser_of(pipe))
    if path is not None and path.is_file() and path.suffix in (".txt", ".json"):
        return from_prompts(pipe, read_prompts(path), options=options)
    if path is not None and path.is_dir():
        return from_folder(pipe, path, max_unreadable=max_unreadable, options=options)
    if path is not None:
        raise DataError(f"no data at '{data}': pass an image folder, cached latents (.safetensors) or prompts (.txt).")
    if not hasattr(pipe, "scheduler"):
        raise DataError("a bare denoiser cannot make its own latents: pass data=LatentData(...), or a pipeline.")
    if data is None:
        return from_prompts(pipe, vocabulary_prompts(pipe), options=options)
    rows = list(data)
    if rows and all(isinstance(row, str) for row in rows):
        return from_prompts(pipe, rows, options=options)
    if rows and all(isinstance(row, tuple) and len(row) == 2 for row in rows):
        images, captions = zip(*rows, strict=True)
        return from_images(pipe, images, captions, max_unreadable=max_unreadable, options=options)
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
