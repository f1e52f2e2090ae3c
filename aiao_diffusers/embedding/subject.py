"""What is to be marked, and what is known of it before: hash, reference activations and site gains of the clean twin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..denoiser.hashes import weights_sha256
from ..denoiser.inputs import LatentData
from ..denoiser.schedule import config_of, is_flow
from ..denoiser.sites import Site
from ..mark.key import WatermarkKey
from ..mark.mark import Mark
from ..mark.record import WatermarkRecord
from ..mark.selection import choose
from ..verification.reference import Reference, observe
from .config import EmbedConfig
from .site_gain import site_gain


@dataclass(frozen=True)
class Subject:
    """A denoiser with all that embedding reads beside it.

    Args:
        denoiser (`nn.Module`): changed in place.
        scheduler: its noise schedule, a diffusers scheduler.
        data (`LatentData`): what it is trained on.
        sites (`Sequence[Site]`): every site of it, in order of execution.
        config (`EmbedConfig`): how to embed; numbers of sites that it leaves open are filled in.
    """

    denoiser: nn.Module
    scheduler: Any
    data: LatentData
    sites: Sequence[Site]
    config: EmbedConfig

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", self.config.for_sites(self.sites))

    @property
    def counts(self) -> tuple[int, int]:
        """How many in-sites and out-sites a key selects."""
        ins, outs = self.config.in_sites, self.config.out_sites
        assert ins is not None and outs is not None  # filled in above
        return ins, outs

    @property
    def schedule(self) -> dict[str, Any]:
        """The noise schedule's config; one that matches flows names its class, for its fields alone need not tell its kind."""
        named = config_of(self.scheduler)
        return named if is_flow(named) else dict(self.scheduler.config)


@dataclass(frozen=True)
class CleanTwin:
    """What is kept of the clean twin before training changes it.

    Args:
        sha256 (`str`): of its weights (`weights_sha256`).
        reference (`Reference`, *optional*): its activations; only what does not know the key may align a suspect. None where a
            commitment has named it already.
        gains (`Mapping[str, float]`): factors on the trigger's amplitude by in-site, 0 where no key has one (`site_gain`).
    """

    sha256: str
    reference: Reference | None
    gains: Mapping[str, float]


def observe_clean_twin(subject: Subject, earlier: WatermarkRecord | None) -> CleanTwin:
    """Read the denoiser before it is marked.

    Args:
        earlier (`WatermarkRecord`, *optional*): of a further mark, the first one's; its gains are taken over.
    """
    sha256 = weights_sha256(subject.denoiser)
    reference = observe(subject.denoiser, subject.data, subject.schedule)
    return CleanTwin(sha256, reference, _measure_gains(subject, earlier))


def choose_marks(subject: Subject, gains: Mapping[str, float], keys: Sequence[WatermarkKey]) -> list[Mark]:
    """The mark of each key on this denoiser.

    Raises:
        ConfigError: the denoiser has too few sites.
    """
    config, silent = subject.config, [name for name, gain in gains.items() if not gain]
    return [Mark(key, *choose(list(subject.sites), key, *subject.counts, silent), config.pairs) for key in keys]


def _measure_gains(subject: Subject, earlier: WatermarkRecord | None) -> Mapping[str, float]:
    """Of a further mark those of the first, or earlier keys would read elsewhere."""
    if earlier is not None:
        return earlier.factors
    config = subject.config
    return site_gain(
        subject.denoiser,
        subject.sites,
        subject.data,
        subject.schedule,
        most=config.loudest,
        least=subject.counts[0],
        seed=config.seed,
    )
