"""What cannot be marked is refused here, before anything is changed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..denoiser.inputs import LatentData
from ..denoiser.schedule import config_of, describe_kind, noise_schedule
from ..denoiser.setup import denoiser_of, denoisers_of
from ..denoiser.sites import Site, trace_on, unwrap
from ..errors import AIAOError, AlreadyMarkedError, ConfigError, DataError, NotTestableError, TrainingError
from ..files.safetensors_header import check_finite
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from .config import EmbedConfig
from .weight_change import require_no_adapter


def choose_denoisers(model: Any, name: str | None) -> list[str]:
    """Names of the denoisers of a pipeline that are marked; "" stands for a bare one.

    Args:
        name (`str`, *optional*): the one that is meant; default: all of them.
    Raises:
        ConfigError: the pipeline has no denoiser of that name.
    """
    known = list(denoisers_of(model))
    if name is None:
        return known or [""]
    if name not in known:
        raise ConfigError(f"{type(model).__name__} has no denoiser {name!r}: it has {', '.join(known) or 'none'}.")
    return [name]


def refuse_for_several(names: Sequence[str], given: Mapping[str, Any]) -> None:
    """Raise ConfigError for arguments that belong to one denoiser where several are marked at once."""
    if taken := [name for name, value in given.items() if value]:
        raise ConfigError(
            f"{', '.join(taken)} belongs to one denoiser, this pipeline has {' and '.join(names)}: say which one with "
            "denoiser= (--denoiser), once for each."
        )


def find_trainable(model: Any, scheduler: Any, allow_marked: bool, name: str = "") -> tuple[Any, Any]:
    """The denoiser and its noise schedule, fit to be trained.

    Args:
        model: a pipeline, or a denoiser together with `scheduler`.
        scheduler: default: the pipeline's.
        allow_marked (`bool`): whether the model may carry a record already.
        name (`str`): of a pipeline's denoiser; default: its first.
    Raises:
        AlreadyMarkedError: it carries one.
        ConfigError: no denoiser, no schedule, or a set-up that training would break or be broken by.
        TrainingError: weights that are not finite.
    """
    if getattr(model, "record", None) is not None and not allow_marked:
        raise AlreadyMarkedError("this model carries a record already: pass allow_marked=True to add a second mark.")
    module = denoiser_of(model) if not name else denoisers_of(model)[name]
    if module is None:
        raise ConfigError(f"{type(model).__name__} is neither a pipeline nor a denoiser: load it first.")
    denoiser = unwrap(module)
    scheduler = scheduler or getattr(model, "scheduler", None)
    if scheduler is None:
        raise ConfigError("a bare denoiser needs its noise schedule: pass scheduler=DDPMScheduler(...).")
    _check_schedule(scheduler, getattr(model, "scheduler", None))
    require_no_adapter(denoiser)
    if getattr(denoiser, "is_gradient_checkpointing", False):
        # Its second forward runs in the backward pass, when the trigger is disarmed: the gradients would be wrong.
        raise ConfigError("gradient checkpointing is on: call disable_gradient_checkpointing(), and set accumulate=.")
    devices = sorted({str(p.device) for p in denoiser.parameters()})
    if len(devices) > 1:
        raise ConfigError(
            f"the denoiser is spread over {devices}: load it on one device, without a device map or offloading."
        )
    try:
        check_finite(dict(denoiser.named_parameters()), "the weights to mark")
    except NotTestableError as error:
        raise TrainingError(f"{error}: load them anew.") from error
    return denoiser, scheduler


def _check_schedule(scheduler: Any, own: Any) -> None:
    """Raise ConfigError for a schedule of no known kind, or of another kind than that of the pipeline's own."""
    noise_schedule(config_of(scheduler))
    if own is None or own is scheduler:
        return
    kind, of_model = describe_kind(config_of(scheduler)), describe_kind(config_of(own))
    if kind != of_model:
        raise ConfigError(
            f"the weights were trained by {of_model}, as the pipeline's {type(own).__name__} says; {type(scheduler).__name__} is of "
            f"{kind}: leave scheduler= out, or pass one of the pipeline's kind."
        )


def check_earlier_marks(keep: Sequence[WatermarkKey], earlier: WatermarkRecord | None, config: EmbedConfig) -> None:
    """Refuse a further mark that the earlier ones would not outlive.

    Args:
        keep: keys of earlier marks that must go on reading.
        earlier (`WatermarkRecord`, *optional*): the record of earlier marks.
    Raises:
        ConfigError: the earlier marks cannot be kept so.
    """
    if config.lineage_only:
        if keep:
            raise ConfigError(
                "keep= (--keep) is of no use with lineage_only=True (--lineage-only): that changes no output, so earlier marks go on "
                "reading as they are. Leave it out."
            )
        return
    if keep and not config.steps:
        raise ConfigError("keep= takes training: an edit alone does not hold earlier marks; set steps above 0.")
    if keep and earlier is None:
        # Which sites the earlier keys chose depends on their record's `loudness`; others would be held in their place.
        raise ConfigError("keep= needs the record of the earlier marks: pass it as earlier=, or the pipeline with it.")
    if earlier is not None and earlier.pairs != config.pairs:
        # One record stands for all earlier marks: of mixed kinds, some would be held by masks they do not answer to.
        option = "with --pairs" if earlier.pairs else "without --pairs"
        raise ConfigError(f"a further mark is of the earlier ones' kind: pass pairs={earlier.pairs} ({option}).")


def trace_sites(denoiser: nn.Module, data: LatentData) -> list[Site]:
    """Every site of the denoiser, in order of execution.

    Raises:
        DataError: latents or conditioning do not fit this denoiser.
    """
    try:
        return trace_on(denoiser, data)
    except (AIAOError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        shape = tuple(data.latents.shape[1:])
        raise DataError(
            f"latents of shape {shape} with conditioning {sorted(data.conditioning)} do not fit this "
            f"{type(denoiser).__name__} ({error}): encode the images with this model's own VAE and text encoder."
        ) from error
