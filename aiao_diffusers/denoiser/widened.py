"""Call a denoiser that was given more inputs than a bank of probes holds: more channels, classes, a text projection."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .inputs import LatentData


@contextmanager
def on_known_inputs(denoiser: Any, data: LatentData) -> Iterator[tuple[str, ...]]:
    """For the length of the block the denoiser is called with `data`'s inputs alone; yields words for the report.

    - Channels beyond those of `data` (a mask, a picture to edit, a depth map) are zero.
    - Classes that `data` does not name are the first class, class vectors are zero.
    - A projection of text of another width is passed by, where `data` holds text of the width behind it.
    A denoiser that takes no more than `data` holds is called as ever.
    """
    notes: list[str] = []
    config: Mapping[str, Any] = getattr(denoiser, "config", None) or {}
    with ExitStack() as stack:
        wanted, held = _channels(denoiser), data.latents.shape[1]
        if wanted is not None and wanted > held:
            stack.callback(denoiser.register_forward_pre_hook(_pad_sample, with_kwargs=True).remove)
            notes.append(
                f"it takes {wanted} channels, the record's probe bank has {held}: it was read on those, the other "
                f"{wanted - held} were zero."
            )
        if getattr(denoiser, "class_embedding", None) is not None and "class_labels" not in data.conditioning:
            stack.callback(denoiser.register_forward_pre_hook(_name_class, with_kwargs=True).remove)
            notes.append("it takes classes, of which the record's probe bank names none: it was read with the first.")
        text = data.conditioning.get("encoder_hidden_states")
        if text is not None and _projects_other_text(denoiser, text.shape[-1]):
            kind, wide = config["encoder_hid_dim_type"], config["encoder_hid_dim"]
            denoiser.config.encoder_hid_dim_type = None
            stack.callback(setattr, denoiser.config, "encoder_hid_dim_type", kind)
            notes.append(
                f"it projects text of width {wide}, the record's probe bank holds text of width {text.shape[-1]}: that was "
                "given behind the projection."
            )
        yield tuple(notes)


def _channels(denoiser: nn.Module) -> int | None:
    first = getattr(denoiser, "conv_in", None)
    return first.in_channels if isinstance(first, nn.Conv2d) else None


def _projects_other_text(denoiser: Any, width: int) -> bool:
    config = getattr(denoiser, "config", None) or {}
    if config.get("encoder_hid_dim_type") != "text_proj" or config.get("encoder_hid_dim") == width:
        return False
    behind = config.get("cross_attention_dim")
    return width in behind if isinstance(behind, list | tuple) else width == behind


def _pad_sample(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward pre-hook: zeros behind the sample's channels, as many as the first layer lacks."""
    sample = args[0] if args else kwargs["sample"]
    lacking = (_channels(module) or 0) - sample.shape[1]
    if lacking > 0:
        zeros = sample.new_zeros(len(sample), lacking, *sample.shape[2:])
        sample = torch.cat([sample, zeros], 1)
    return ((sample, *args[1:]), kwargs) if args else (args, {**kwargs, "sample": sample})


def _name_class(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward pre-hook: the first class for every row, or the zero vector where classes are vectors."""
    if kwargs.get("class_labels") is not None:
        return None
    sample = args[0] if args else kwargs["sample"]
    kind, rows = module.config.get("class_embed_type"), len(sample)
    if kind in ("projection", "simple_projection"):
        labels = sample.new_zeros(rows, module.config["projection_class_embeddings_input_dim"])
    elif kind == "identity":
        labels = sample.new_zeros(rows, module.time_embedding.linear_2.out_features)
    else:
        labels = torch.zeros(rows, dtype=torch.long, device=sample.device)
    return args, {**kwargs, "class_labels": labels}
