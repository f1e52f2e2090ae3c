"""The noise schedule of a suspect, where it brings one: the record's must not stand in for it.

A record's schedule says what noise the probe bank gets. Its writer may have frozen it, so that a crafted bank reaches the suspect
as it is. Where the suspect's pipeline names a schedule of its own that adds other noise (other betas, another shift), readings use that one. A
fine-tuner who changes the scheduler's class, spacing or steps of sampling leaves the betas as they are, and nothing changes;
one who changes the betas has trained the model on the noise that is then read with.

Source: our choice.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..denoiser.schedule import config_of, describe_kind, is_flow
from ..errors import AIAOError, RecordError
from ..files.strict_json import read_json
from ..files.text import short
from ..hub.download import SCHEDULE
from ..mark.record import WatermarkRecord


_TOLERANCE = 1e-4  # relative, of the share of signal left; configs written by other versions round differently


def find_schedule(source: Any) -> dict[str, Any] | None:
    """The scheduler's config of a pipeline or of its folder; None where there is none that can be read."""
    if isinstance(source, str | Path):
        file = Path(source) / SCHEDULE
        try:
            return read_json(file) if file.is_file() else None
        except (AIAOError, OSError):
            return None
    scheduler = getattr(source, "scheduler", None)
    return config_of(scheduler) if isinstance(getattr(scheduler, "config", None), Mapping) else None


def with_own_schedule(
    record: WatermarkRecord, config: Mapping[str, Any] | None
) -> tuple[WatermarkRecord, tuple[str, ...]]:
    """What to read a suspect with that brings the scheduler `config`, and words for the report.

    Returns:
        the record itself where the suspect brings no schedule, the same one, or one of another kind than the record's; else the record with the
        suspect's schedule.
    """
    if config is None:
        return record, ()
    name = short(config.get("_class_name", "scheduler"))
    own_kind, kind = describe_kind(config), "flow matching" if is_flow(record.scheduler) else "betas"
    if own_kind != kind:
        return record, (
            f"the suspect's {name} is of {own_kind}, the record's schedule of {kind}: the suspect was read with the record's.",
        )
    try:
        own = record.as_read(scheduler=dict(config))
    except RecordError:
        return record, (f"the suspect's {name} cannot be built: it was read with the record's noise schedule.",)
    if _same_noise(own, record):
        # What a model predicts matters for healing alone.
        kinds = {_kind(own), _kind(record)}
        return (record if len(kinds) == 1 else own), ()
    return own, (
        f"the record names another noise schedule than the suspect's own {name}: it was read with the suspect's.",
    )


def _same_noise(one: WatermarkRecord, other: WatermarkRecord) -> bool:
    left, right = (record.schedule.amounts()[0].square() for record in (one, other))
    return left.shape == right.shape and torch.allclose(left, right, rtol=_TOLERANCE, atol=_TOLERANCE)


def _kind(record: WatermarkRecord) -> str:
    return record.schedule.kind
