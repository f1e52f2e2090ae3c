"""The architecture by which an adapter's file is read without any base: the one that the record names, all of it without memory."""

import math
import re

from torch import nn

from ..errors import RecordError, SuspectError, UnsafeFileError
from ..formats.architecture import blank_of_config, known_config
from ..mark.record import WatermarkRecord


_MOST_LAYERS = 256
_MOST_TOGETHER = 2048
"""Of all layers that a config asks for, multiplied: no file's tensors bound a record's architecture. FLUX has 19 x 38, SDXL 2 x 10."""
_LAYERS = re.compile("layers|blocks|depth|stages")


def blank_of(record: WatermarkRecord) -> nn.Module | None:
    """A denoiser of the marked model's architecture on the meta device; None where the mark has no carrier.

    Raises:
        RecordError: the architecture is no denoiser of diffusers, or asks for more than one has.
    """
    if record.lineage is None:
        return None
    config = {**record.lineage["architecture"], "_class_name": record.denoiser}
    together = math.prod(_most(value) for name, value in config.items() if _LAYERS.search(name))
    if together > _MOST_TOGETHER:
        raise RecordError(
            f"the record's architecture asks for {together} layers, at most {_MOST_TOGETHER}: it was altered."
        )
    try:
        model_class, config = known_config(config, "the record's architecture", _MOST_LAYERS)
        return blank_of_config(model_class, config)
    except (SuspectError, UnsafeFileError) as error:
        raise RecordError(
            f"the record's lineage names no architecture that can be read ({error}): restore it."
        ) from error


def _most(value: object) -> int:
    """The largest whole number in a value of a config, at least 1."""
    if isinstance(value, list):
        return max((_most(item) for item in value), default=1)
    return max(value, 1) if type(value) is int else 1
