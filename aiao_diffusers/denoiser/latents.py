"""How pictures become what a pipeline's scheduler steps through, learnt from the pipeline and not from its family.

A pipeline ends by taking the scheduler's last sample apart: it unpacks tokens or patches, undoes the scaling of each channel,
and gives the rest to its autoencoder. Both ends of that way are heard in one run. The way back is one of a few rearrangements
and a line for each channel, fitted by least squares; it counts only if it gives the scheduler's sample again.

Source: our choice.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import DataError
from .recording import record
from .request import named_denoiser, parameters_of


STEPS = 3
"""Of the run that is listened to; some samplers need as many."""
TOLERANCE = 1e-4
"""Largest error of the sample as mapped, in units of the sample's largest value; of half precision, what its rounding leaves."""
ROUNDINGS = 8
ERRORS = 4
"""Standard errors of a shift within which it counts as 0."""
FEWEST = 4
"""Positions that a channel's line is fitted to."""
PATCHES = (1, 2, 4)
RGB = 3
FRAMES = ("num_frames", "frames", "video_length")
"""Arguments by which diffusers' pipelines of videos are told how long to draw."""
SLOTS = ("vae", "vqvae", "movq")
"""Names that diffusers' pipelines give their autoencoder."""
_ADVICE = "pass prompts, or LatentData with latents of your own."


@dataclass(frozen=True)
class Rearrangement:
    """Patches into channels, and the channels first or last.

    Args:
        patch (`int`): positions along a side that become one, default 1.
        inner (`bool`): within a patch, the channels run fastest, default False: slowest.
        last (`bool`): channels come after the positions, as in tokens, default False.
    """

    patch: int = 1
    inner: bool = False
    last: bool = False

    def grid(self, latents: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` as `(B, C', positions)`: a row of values for each channel of the sample."""
        side = self.patch
        parts = latents.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # b c h p w q
        order = (0, 3, 5, 1, 2, 4) if self.inner else (0, 1, 3, 5, 2, 4)
        return parts.permute(order).flatten(4).flatten(1, 3)

    def place(self, grid: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """`(B, C', positions)` in the sample's `shape`, a row's."""
        return (grid.transpose(1, 2) if self.last else grid).reshape(len(grid), *shape)

    def take(self, sample: torch.Tensor, channels: int) -> torch.Tensor:
        """The sample as `(B, C', positions)`: undoes `place`."""
        flat = sample.flatten(1)
        return flat.unflatten(1, (-1, channels)).transpose(1, 2) if self.last else flat.unflatten(1, (channels, -1))


@dataclass(frozen=True)
class LatentMap:
    """From what an autoencoder encodes to what the pipeline's scheduler steps through.

    Args:
        size (`tuple[int, int]`): of the pictures, width and height in pixels.
        encoded (`torch.Size`): a row of what the autoencoder encodes; with a frame axis of length 1 where it is one of videos.
        shape (`torch.Size`): a row of the scheduler's sample.
        rearrangement (`Rearrangement`): between the two.
        scale, shift (`torch.Tensor`): a line for each channel of the sample, `(C',)`, float64.
    """

    size: tuple[int, int]
    encoded: torch.Size
    shape: torch.Size
    rearrangement: Rearrangement
    scale: torch.Tensor
    shift: torch.Tensor

    def apply(self, latents: torch.Tensor) -> torch.Tensor:
        """Encoded pictures `(B, *encoded)` as samples `(B, *shape)`, float32."""
        # Not in double precision, which some devices lack.
        grid = self.rearrangement.grid(_without_frames(latents).float())
        mapped = grid * self.scale[:, None].to(grid) + self.shift[:, None].to(grid)
        return self.rearrangement.place(mapped, self.shape)

    def encode(self, pipe: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels `(B, 3, height, width)` in [-1, 1] as samples `(B, *shape)`, float32 where the autoencoder is.

        Raises:
            DataError: the autoencoder makes other latents of them than those that it decodes.
        """
        vae = autoencoder(pipe)
        pixels = pixels.to(getattr(pipe, "_execution_device", vae.device), vae.dtype)
        made = posterior_mean(vae.encode(pixels.unsqueeze(2) if len(self.encoded) == 4 else pixels))
        if made.shape[1:] != self.encoded:
            raise DataError(
                f"the {type(vae).__name__} of {type(pipe).__name__} encodes pictures as {tuple(made.shape[1:])} and decodes "
                f"{tuple(self.encoded)}: {_ADVICE}"
            )
        return self.apply(made)


def autoencoder(pipe: Any) -> Any:
    """The pipeline's autoencoder under any of diffusers' names; None for a denoiser of pixels."""
    return next((part for name in SLOTS if (part := getattr(pipe, name, None))), None)


@contextmanager
def full_precision(vae: Any) -> Iterator[None]:
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


def posterior_mean(encoded: Any) -> torch.Tensor:
    """The latents in what an autoencoder's `encode` returns, of a distribution the mean."""
    if hasattr(encoded, "latent_dist"):
        # The identity that autoencoders without a distribution put there knows the mode alone.
        made = encoded.latent_dist
        return made.mean if hasattr(made, "mean") else made.mode()
    for name in ("latents", "latent"):
        if hasattr(encoded, name):
            return getattr(encoded, name)
    return encoded[0] if isinstance(encoded, tuple) else encoded


def check_pictures(pipe: Any, options: Mapping[str, Any] | None = None, *, pixels: bool = False) -> None:
    """Refuse, before anything runs, pictures for a pipeline that cannot encode any.

    Args:
        options (`Mapping[str, Any]`, *optional*): for the pipeline's call: those of videos may ask for a single frame.
        pixels (`bool`): a pipeline that is not made to have an autoencoder may do without, default False.
    Raises:
        DataError: it draws videos, or there is no autoencoder.
    """
    name, known = type(pipe).__name__, parameters_of(pipe)
    frames = next((argument for argument in FRAMES if argument in known), None)
    if frames is not None and (options or {}).get(frames) != 1:
        raise DataError(f"{name} draws videos, of which a picture is none: {_ADVICE}")
    empty = any(hasattr(pipe, slot) for slot in SLOTS)
    if autoencoder(pipe) is None and (empty or not pixels):
        found = "was loaded without its autoencoder" if empty else "has no autoencoder"
        raise DataError(f"{name} {found}, by which pictures are encoded: {_ADVICE}")


def learn_latents(pipe: Any, given: Mapping[str, Any], *, seed: int = 0) -> LatentMap:
    """The map of a pipeline, from one run of a few steps to its picture.

    Args:
        given: the keywords of a call for one picture, but for steps and generator.
        seed (`int`, defaults to 0): of the run's noise.
    Raises:
        DataError: the pipeline does not run, decodes no picture, or no map gives the scheduler's last sample again.
    """
    options = {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(seed), **given}
    known = parameters_of(pipe)
    label, (_, denoiser), vae = type(pipe).__name__, named_denoiser(pipe), autoencoder(pipe)
    decoded: list[tuple[torch.Tensor, torch.Size]] = []

    def decode(original: Callable[..., Any], latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(latents, *args, **kwargs)
        pixels = result[0] if isinstance(result, tuple) else result.sample
        decoded.append((latents.detach().cpu(), pixels.shape))
        return result

    with replaced(vae, "decode", decode):
        heard = record(pipe, denoiser, {name: value for name, value in options.items() if name in known}, guided=True)
    if not decoded or not heard.last.numel():
        raise DataError(f"{label} did not step its scheduler and decode a picture of what that made: {_ADVICE}")
    latents, pixels = decoded[-1]
    if latents.ndim == 5 and latents.shape[2] > 1:
        raise DataError(f"{label} draws videos, of which a picture is none: {_ADVICE}")
    if latents.ndim not in (4, 5) or len(pixels) != latents.ndim or pixels[1] != RGB:
        raise DataError(f"{label} decodes {tuple(pixels)}, which is no picture in red, green and blue: {_ADVICE}")
    # Guidance may keep two rows for a picture, of which the first is the picture's.
    return fit(label, latents, heard.last.cpu()[: len(latents)], (pixels[-1], pixels[-2]))


def fit(name: str, latents: torch.Tensor, sample: torch.Tensor, size: tuple[int, int]) -> LatentMap:
    """The map that makes `sample` `(B, ...)` of `latents` `(B, C, H, W)` or `(B, C, 1, H, W)`.

    Args:
        name (`str`): of the pipeline, for the error.
    Raises:
        DataError: there is none among those that are tried.
    """
    flat, wanted = _without_frames(latents).double(), sample.double()
    loss = max(torch.finfo(latents.dtype).eps, torch.finfo(sample.dtype).eps)
    best, found = float("inf"), None
    for rearrangement in _candidates(flat):
        if flat[0].numel() != wanted[0].numel() or len(flat) != len(wanted):
            break
        grid = rearrangement.grid(flat)
        scale, shift = _lines(grid, rearrangement.take(wanted, grid.shape[1]))
        made = LatentMap(size, latents.shape[1:], sample.shape[1:], rearrangement, scale, shift)
        error = float((made.apply(latents) - wanted).abs().max() / wanted.abs().max())
        if error < best:
            best, found = error, made
    if found is None or not best <= max(TOLERANCE, ROUNDINGS * loss):
        raise DataError(
            f"how {name} makes its {tuple(sample.shape[1:])} of the {tuple(latents.shape[1:])} that its autoencoder encodes is "
            f"not understood: {_ADVICE}"
        )
    return found


def _without_frames(latents: torch.Tensor) -> torch.Tensor:
    return latents.squeeze(2) if latents.ndim == 5 else latents


def _candidates(latents: torch.Tensor) -> Iterator[Rearrangement]:
    height, width = latents.shape[2:]
    for patch in PATCHES:
        fits = height % patch == 0 and width % patch == 0
        if fits and len(latents) * height * width // patch**2 >= FEWEST:
            for inner in (False, True) if patch > 1 else (False,):
                yield from (Rearrangement(patch, inner, last) for last in (False, True))


def _lines(given: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares, a line for each channel of `(B, C', positions)`; a shift that its own error explains is none."""
    given, wanted = (value.transpose(0, 1).flatten(1) for value in (given, wanted))
    centre, about = given.mean(1), wanted.mean(1)
    spread, moved = given - centre[:, None], wanted - about[:, None]
    power = spread.square().sum(1)
    scale = (spread * moved).sum(1) / power
    shift = about - scale * centre
    variance = (moved - scale[:, None] * spread).square().mean(1)
    error = (variance * (1 / given.shape[1] + centre.square() / power)).sqrt()
    return scale, torch.where(shift.abs() < ERRORS * error, 0.0, shift)


@contextmanager
def replaced(owner: Any, name: str, listener: Callable[..., Any]) -> Iterator[None]:
    """`listener(original, ...)` in the place of a method, on this instance; afterwards as it was, whatever happens."""
    before, original = dict(vars(owner)), getattr(owner, name)
    made: Any = partial(listener, original)
    made.__signature__ = inspect.signature(original)  # pipelines look at it
    setattr(owner, name, made)
    try:
        yield
    finally:
        delattr(owner, name)
        if name in before:
            setattr(owner, name, before[name])
