"""What a record says of a lineage carrier: its strength, and the architecture that its sites follow from.

It is all that reading an adapter's file takes beside the key. Both are public: the directions follow from the key alone.

Source: our choice.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import RecordError
from ..files.text import short


MAX_STRENGTH = 4.0
MAX_ARCHITECTURE_BYTES = 2**16
_FIELDS = {"strength", "architecture", "only"}


def carried(strength: float, denoiser: nn.Module, *, only: bool = False) -> dict[str, Any]:
    """The record's field `lineage` for a denoiser that carries directions at this strength.

    Args:
        strength: as of `lineage.carrier.add_carrier`. denoiser: a diffusers model, as `unwrap` gives it. only: there is no mark on
            sub-paths beside it, so nothing else can be read.
    """
    return {"strength": float(strength), "architecture": public_config(denoiser), "only": only}


def public_config(denoiser: Any) -> dict[str, Any]:
    """A denoiser's config as JSON gives it back, without notes on where it came from; empty where it has none."""
    public = {name: value for name, value in getattr(denoiser, "config", {}).items() if not name.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(public, default=str))
    return plain


def check_carried(field: object) -> None:
    """Raises RecordError where the field `lineage` of a record is not as `carried` makes it."""
    if not isinstance(field, dict) or field.keys() != _FIELDS:
        raise RecordError(
            f"the record's lineage is {short(field)}, expected strength, architecture and only: it was altered."
        )
    if type(field["only"]) is not bool:
        raise RecordError(
            f"the record's lineage has only {short(field['only'])}, expected true or false: it was altered."
        )
    strength, architecture = field["strength"], field["architecture"]
    if type(strength) not in (int, float) or not 0 < strength <= MAX_STRENGTH:
        raise RecordError(
            f"the record's lineage has strength {short(strength)}, which must be above 0 and at most {MAX_STRENGTH:g}: it was altered."
        )
    if not isinstance(architecture, dict) or _bytes(architecture) > MAX_ARCHITECTURE_BYTES:
        raise RecordError(
            f"the record's lineage has architecture {short(architecture)}, which must be a diffusers config of at most "
            f"{MAX_ARCHITECTURE_BYTES} bytes: it was altered."
        )


def lineage_document(field: Mapping[str, Any]) -> dict[str, Any]:
    """The field as a commitment's document holds it: numbers as text, for no two writers print them alike."""
    return {
        **field,
        "strength": repr(float(field["strength"])),
        "architecture": json.dumps(field["architecture"], sort_keys=True),
    }


def parse_lineage(document: Mapping[str, Any]) -> dict[str, Any]:
    """The field again from `lineage_document`.

    Raises:
        TypeError, ValueError, LookupError: the document is of another kind.
    """
    return {
        **document,
        "strength": float(document["strength"]),
        "architecture": json.loads(document["architecture"]),
    }


def _bytes(value: object) -> float:
    try:
        return len(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return math.inf
