"""The public record: what is known before embedding, and the whole of scheme `aiao-1` after it."""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from ..denoiser.hashes import weights_sha256
from ..denoiser.inputs import LatentData
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from .subject import CleanTwin, Subject


def make_record(
    subject: Subject, key: WatermarkKey, clean_twin: CleanTwin, lineage: dict[str, Any] | None = None
) -> WatermarkRecord:
    """What to publish beside the weights; its probe bank is a random part of the training latents.

    Args:
        subject (`Subject`): its denoiser marked, in the precision that the user keeps it in.
        key (`WatermarkKey`): of the mark.
        clean_twin (`CleanTwin`): what was observed before; the record names its hashes.
        lineage (`dict`, *optional*): of the carrier that is there (`LineageChange.field`).
    """
    return WatermarkRecord(
        commitment=key.commitment,
        marked_sha256=weights_sha256(subject.denoiser),
        bank=choose_bank(subject),
        lineage=lineage,
        **public_fields(subject, key.owner, clean_twin),
    )


def choose_bank(subject: Subject) -> LatentData:
    """A random part of the latents, the same for the same seed."""
    order = torch.randperm(len(subject.data), generator=torch.Generator().manual_seed(subject.config.seed))
    return subject.data.take(order[: subject.config.bank_size])


def public_fields(subject: Subject, owner: str, clean_twin: CleanTwin) -> dict[str, Any]:
    """Fields of a record that are known before embedding, whatever its scheme."""
    config, (ins, outs) = subject.config, subject.counts
    return {
        "owner": owner,
        "denoiser": type(subject.denoiser).__name__,
        "sites": len(subject.sites),
        "in_sites": ins,
        "out_sites": outs,
        "kappa": config.kappa,
        "pairs": config.pairs,
        "response": config.response,
        "scheduler": _plain(subject.schedule),
        "teacher_sha256": clean_twin.sha256,
        "layout": tuple(subject.sites),
        "reference_sha256": None if clean_twin.reference is None else clean_twin.reference.sha256,
        # Of every candidate, so that it tells nothing of the key's own sites.
        "loudness": tuple(clean_twin.gains.get(site.name, 1.0) for site in subject.sites),
    }


def _plain(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule's config as JSON. diffusers lists the defaults it used in the order of a set, which differs from process to
    process: sorted, the same embedding gives the same record. Infinite bounds of samplers, which JSON has not, are left out."""
    told = {n: v for n, v in schedule.items() if not isinstance(v, float) or math.isfinite(v)}
    plain: dict[str, Any] = json.loads(json.dumps(told, default=str, allow_nan=False))
    if isinstance(plain.get("_use_default_values"), list):
        plain["_use_default_values"].sort()
    return plain
