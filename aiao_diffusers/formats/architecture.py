"""The architecture of a denoiser without its weights: of a config, and of a bare file, told by its base's config and by what its
tensors widen of it."""

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import nn

from ..denoiser.sites import refuse_folded_frames
from ..errors import SuspectError, UnsafeFileError
from ..files.text import short
from .building import build_blank
from .model_folder import check_config, class_of, fields_of, is_denoiser_name
from .upstream import UPSTREAM_ERRORS


_FIRST = ("conv_in.weight", "input_blocks.0.0.weight")
_CLASSES = ("class_embedding.weight", "label_emb.weight")
GUIDANCE = "time_embedding.cond_proj.weight"
ORIGINAL_GUIDANCE = "time_embed.cond_proj.weight"
"""The same in original keys, where diffusers' converter does not know it."""
_TEXT = "encoder_hid_proj.weight"


def config_changes(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Fields of a U-Net's config that a file's tensors say otherwise: channels (inpainting, editing, depth), the embedding
    of guidance (LCM), classes, the projection of text.

    Args:
        config: of the base. shapes: of the file's tensors, by their names in the model or in the original layout.
    """
    said: dict[str, Any] = {}
    for name in _FIRST:
        if len(shapes.get(name, ())) == 4:
            said["in_channels"] = shapes[name][1]
    if "in_channels" in said:
        widths = [shapes[name][1] for name in (GUIDANCE, ORIGINAL_GUIDANCE) if len(shapes.get(name, ())) == 2]
        said["time_cond_proj_dim"] = widths[0] if widths else None
    # What only diffusers' names tell is left alone for a file in other names.
    if _FIRST[0] in shapes:
        if config.get("encoder_hid_dim_type") in (None, "text_proj"):
            wide = shapes[_TEXT][1] if len(shapes.get(_TEXT, ())) == 2 else None
            said |= {"encoder_hid_dim": wide, "encoder_hid_dim_type": None if wide is None else "text_proj"}
    if config.get("class_embed_type") is None and any(name in shapes for name in _FIRST):
        counts = [shapes[name][0] for name in _CLASSES if len(shapes.get(name, ())) == 2]
        said["num_class_embeds"] = counts[0] if counts else None
    return {name: value for name, value in said.items() if name in config and config[name] != value}


def blank_like(
    base: nn.Module, shapes: Mapping[str, tuple[int, ...]], *, to_be_filled: bool = True
) -> ModelMixin | None:
    """An empty model of the architecture that the file has, or None where the base has it itself.

    Every weight is on the meta device: the file must hold them all. Adapters that sit in the base's layers stay behind.

    Args:
        base: plain, as `unwrap` gives it. shapes: as in `config_changes`.
        to_be_filled (defaults to True): as for `rebuild`.
    """
    if not isinstance(base, ModelMixin):
        return None
    model: Any = base  # ModelMixin's config methods are untyped
    changes = config_changes(model.config, shapes) if "in_channels" in model.config else {}
    if not changes and not any(hasattr(module, "base_layer") for module in base.modules()):
        return None
    try:
        return rebuild(base, changes, to_be_filled=to_be_filled)
    except UPSTREAM_ERRORS:
        return None  # the base's own names and shapes then say what does not fit


def rebuild(model: ModelMixin, changes: Mapping[str, Any], *, to_be_filled: bool = True) -> ModelMixin:
    """A model of the same config but for `changes`, its weights on the meta device.

    Args:
        to_be_filled (defaults to True): with real buffers, so that a file's weights make it whole. accelerate patches `nn.Module` for that,
            and with it what any other thread builds meanwhile: pass False where threads compare names and shapes alone.
    """
    shaped: Any = model  # ModelMixin's config methods are untyped
    # Private fields say among others which values are the class's defaults, and those would come back.
    config = {name: value for name, value in shaped.config.items() if not name.startswith("_")}
    with init_empty_weights(include_buffers=False) if to_be_filled else torch.device("meta"):
        blank: ModelMixin = type(shaped).from_config({**config, **changes})
    return blank


def known_config(config: Mapping[str, Any], where: object, tensors: int) -> tuple[type[ModelMixin], dict[str, Any]]:
    """The denoiser's class that a config names, and the config under that class's name.

    Args:
        config: as diffusers writes it. where: named in errors. tensors: how many a file holds, which bounds the layers.
    Raises:
        SuspectError: no denoiser of this version of diffusers, or one that folds frames into the batch. UnsafeFileError: a number that
        asks for more than such a model has.
    """
    model_class = _find_class(class_of(config)[0], where)
    check_config({name: config[name] for name in config.keys() & fields_of(model_class)}, tensors)
    return model_class, {**config, "_class_name": model_class.__name__}


def blank_of_config(model_class: type[ModelMixin], config: Mapping[str, Any]) -> ModelMixin:
    """A model of this config, all of it on the meta device.

    Raises:
        SuspectError: it cannot be built. UnsafeFileError: built with real tables, it would take more than any published model.
    """
    built: Any = model_class  # ModelMixin's config methods are untyped
    try:
        blank: ModelMixin = build_blank(lambda: built.from_config(dict(config)))
    except UnsafeFileError:
        raise
    except UPSTREAM_ERRORS as error:
        raise SuspectError(f"{model_class.__name__} cannot be built from config.json: {short(str(error))}") from error
    return blank


def _find_class(name: object, where: object) -> type[ModelMixin]:
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise SuspectError(f"{where}: _class_name is {short(name)}, expected the name of a diffusers model")
    found = getattr(diffusers, name, None)
    # Only classes that diffusers itself exports: a class named by a repository must never be imported.
    if not isinstance(found, type) or not issubclass(found, ModelMixin) or not is_denoiser_name(name):
        raise SuspectError(f"{where}: {short(name)} is no denoiser of diffusers {diffusers.__version__}")
    refuse_folded_frames(name)
    return found
