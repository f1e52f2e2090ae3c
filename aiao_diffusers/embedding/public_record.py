"""The public record of the denoiser that was just marked."""

import json

import torch

from ..denoiser.hashes import weights_sha256
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from .subject import CleanTwin, Subject


def make_record(subject: Subject, key: WatermarkKey, clean_twin: CleanTwin) -> WatermarkRecord:
    """What to publish beside the weights; its probe bank is a random part of the training latents.

    Args:
        subject (`Subject`): its denoiser marked, in the precision that the user keeps it in.
        key (`WatermarkKey`): of the mark.
        clean_twin (`CleanTwin`): what was observed before; the record names its hashes.
    """
    config, data = subject.config, subject.data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(config.seed))
    return WatermarkRecord(
        owner=key.owner,
        commitment=key.commitment,
        denoiser=type(subject.denoiser).__name__,
        sites=len(subject.sites),
        in_sites=config.in_sites,
        out_sites=config.out_sites,
        kappa=config.kappa,
        pairs=config.pairs,
        response=config.response,
        scheduler=json.loads(json.dumps(subject.schedule, default=str)),
        bank=data.take(order[: config.bank_size]),
        marked_sha256=weights_sha256(subject.denoiser),
        teacher_sha256=clean_twin.sha256,
        layout=tuple(subject.sites),
        reference_sha256=clean_twin.reference.sha256,
        # Of every candidate, so that it tells nothing of the key's own sites.
        loudness=tuple(clean_twin.gains.get(site.name, 1.0) for site in subject.sites),
    )
