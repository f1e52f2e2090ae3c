"""The attention sites of a denoiser, in order of execution, and which of them a key uses."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from ..errors import NotTestableError, SiteError
from .call import evaluate
from .inputs import LatentData
from .setup import placement
from .trigger import channel_axis


FOLD_FRAMES = frozenset(
    {
        "I2VGenXLUNet",
        "LatteTransformer3DModel",
        "UNet3DConditionModel",
        "UNetMotionModel",
        "UNetSpatioTemporalConditionModel",
    }
)
"""Classes of denoisers whose attention takes frames for rows, or places for rows."""


@dataclass(frozen=True)
class Site:
    """One attention-processor slot.

    Args:
        name (`str`): diffusers' name of the attention module, without `.processor`.
        order (`int`): place in order of execution, from 0.
        width_in (`int`): channels of the hidden states that enter the processor (a response is read there).
        width_out (`int`): channels of what the processor returns (a trigger is applied there).
    """

    name: str
    order: int
    width_in: int
    width_out: int


def unwrap(denoiser: nn.Module) -> nn.Module:
    """The plain module behind `torch.compile`, data-parallel wrappers and peft's models; weights are shared."""
    # A compiled wrapper would put its prefix before every site's name, and masks hang on names. The fp32 wrapper stays,
    # for taking it off changes the module itself and ends the user's mixed precision.
    while True:
        inner = extract_model_from_parallel(denoiser, keep_torch_compile=False)
        # peft's `PeftModel.base_model` and the tuner's `model` below it; the adapters themselves sit in the layers.
        for attribute in ("base_model", "model"):
            held = getattr(inner, attribute, None) if type(inner).__module__.startswith("peft.") else None
            inner = held if isinstance(held, nn.Module) else inner
        if inner is denoiser:
            return inner
        denoiser = inner


def refuse_folded_frames(class_name: str) -> None:
    """Raise NotTestableError for denoisers that fold frames into the batch, where a row is no longer a sample."""
    if class_name in FOLD_FRAMES:
        raise NotTestableError(
            f"a {class_name} folds frames into the batch, in which a response cannot be told row by row: ask about the "
            "image model that it was made from."
        )


def attention_modules(denoiser: nn.Module) -> dict[str, Any]:
    """Modules that hold an attention processor, by name.

    Raises:
        SiteError: the denoiser has none.
    """
    # Not through `attn_processors`: UNet2DModel has attention, but not that property.
    # A block compiled by assignment, `unet.mid_block = torch.compile(...)`, puts its own name into those below it.
    modules = {
        name.replace("_orig_mod.", ""): m
        for name, m in denoiser.named_modules()
        if hasattr(m, "processor") and (hasattr(m, "set_processor") or type(m).__module__.startswith("diffusers."))
    }
    if not modules:
        raise SiteError(
            f"{type(denoiser).__name__} has no attention sites (no module with a `processor`): AIAO marks denoisers with "
            "attention, such as UNet2DConditionModel or UNet2DModel."
        )
    return modules


def first_tensor(value: object) -> torch.Tensor:
    """A processor's main hidden states: joint-attention processors return them first in a tuple."""
    if isinstance(value, tuple):
        value = value[0]
    if not isinstance(value, torch.Tensor):
        raise SiteError(f"an attention processor returned {type(value).__name__}, expected a tensor.")
    return value


@contextmanager
def watch_order(denoiser: nn.Module) -> Iterator[list[str]]:
    """For the length of the block, the names of the sites that forwards reach, in that order; a forward may end early."""
    reached: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            reached.append(name)

        return hook

    with ExitStack() as stack:
        for name, module in attention_modules(denoiser).items():
            stack.callback(module.register_forward_pre_hook(enter(name)).remove)
        yield reached


def trace(denoiser: nn.Module, forward: Callable[[], object], rows: int | None = None) -> list[Site]:
    """All sites in order of execution, with their widths, observed during one call of `forward`.

    Args:
        denoiser (`nn.Module`): a diffusers denoiser.
        forward: runs the denoiser once, on any valid input.
        rows (`int`, *optional*): of that input; attention whose states have another number of rows, such as one over the layers of a
            text encoder, is no site then, for its rows are no samples. None: each is one.
    Raises:
        SiteError: no sites, a site that runs more than once (its response would be ambiguous), or one that returns states of
            another rank than it takes.
    Names alone do not give the order: diffusers lists a U-Net's middle block last.
    """
    seen: list[Site] = []
    widths: dict[str, int] = {}
    ranks: dict[str, int] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            widths[name], ranks[name] = hidden.shape[channel_axis(hidden)], hidden.ndim

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            hidden = first_tensor(output)
            if rows is not None and len(hidden) != rows:
                return
            if hidden.ndim != ranks[name]:
                # A mask would land on another axis than the channels', without a word.
                raise SiteError(
                    f"{name} of a {type(denoiser).__name__} takes states of {ranks[name]} axes and returns {hidden.ndim}: its "
                    "channels cannot be told, so this kind of denoiser is not supported."
                )
            seen.append(Site(name, len(seen), widths[name], hidden.shape[channel_axis(hidden)]))

        return hook

    handles = []
    try:
        for name, module in attention_modules(denoiser).items():
            handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(leave(name)))
        with torch.no_grad():
            forward()
    finally:
        for handle in reversed(handles):
            handle.remove()
    if not seen:
        raise SiteError(f"{type(denoiser).__name__} has no attention whose rows are samples: it cannot be marked.")
    names = [site.name for site in seen]
    if len(set(names)) != len(names):
        raise SiteError(f"sites run more than once in a forward: {sorted({n for n in names if names.count(n) > 1})}.")
    return seen


def trace_on(denoiser: nn.Module, data: LatentData) -> list[Site]:
    """`trace` with the first row of `data`, in the denoiser's own dtype and on its device, at timestep 0."""
    device, dtype = placement(denoiser)
    first = data.take(torch.zeros(1, dtype=torch.long))
    sample, time = first.latents.to(device, dtype), torch.zeros(1, dtype=torch.long, device=device)
    return trace(denoiser, lambda: evaluate(denoiser, sample, time, first.keywords(device, dtype)), rows=1)
