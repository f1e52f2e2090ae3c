"""Read the carrier from an adapter's file alone: was it trained on a model that carries the key's directions?

Delta W is the change that the adapter makes to a layer, and M of a site the sum of Delta W^T Delta W over its layers, each over its
size. Two looks are fixed beforehand and adjusted by the sequential test:

1. "ones": d = M 1, what the change does to the public direction that was shifted together with the secret one. Rank scores of d
   against v, which read a quarter deeper than hits here (log10 p -52 for -42: a LoRA of 100 steps on the example U-Net).
2. "top": the direction at right angles to 1 that M amplifies most, with either sign at each site. It outlives the removal of 1 from
   an adapter (-32, where the first look is at -1). Neither outlives the removal of the model's own mean activations, which takes
   forwards of the marked model.

Source: our choice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..errors import ConfigError, NotTestableError, WrongBaseError
from ..formats.artifact import Artifact
from ..formats.row_space import read_row_spaces
from ..mark.key import WatermarkKey
from ..stats.folded import folded_log10_p
from ..stats.hits import SiteHits, SiteTest, count_hits, floor_log10_p, is_split, site_log10_p
from ..stats.ranks import rank_log10_p, rank_site
from ..stats.sequential import SequentialTest, Verdict
from .site import CarrierSite, direction
from .sites import plan_carrier


Kind = Literal["adapter", "weights"]
CLAIMS: Mapping[Kind, str] = {
    "adapter": "trained on a model that carries the mark, or made with knowledge of it",
    "weights": "its weights carry the mark's directions: it descends from the marked model, or was made with knowledge of it",
}
"""What a verified reading says, by what was read."""
_NO_CLAIMS: Mapping[Kind, str] = {
    "adapter": "the file does not show on which model it was trained",
    "weights": "its weights do not show that it descends from the marked model",
}
LOOKS = ("ones", "top")
_site_log10_p = lru_cache(maxsize=8192)(site_log10_p)


@dataclass(frozen=True)
class LineageReading:
    """What an adapter's file says of the model that it was trained on, or a denoiser's weights of the one that it descends from.

    Args:
        verdict: `verified`, `not_verified` or `not_testable`.
        alpha: chance of a false `verified`.
        log10_p: adjusted for the looks; None where not testable.
        log10_p_floor: the smallest that the sites at hand allow in the first look, adjusted.
        sites: hits of the first look's d, site by site.
        share: of the architecture's carrier sites, those that were read: that the adapter touches.
        looks: each look's label, own and adjusted p-value.
        reason: why it is not testable, else "".
        warnings: what the report must say.
        sha256: of the file's tensors.
        kind: what was read, `adapter` or `weights`; `claim` says what a verified one shows.
    """

    verdict: Verdict
    alpha: float
    log10_p: float | None = None
    log10_p_floor: float | None = None
    sites: tuple[SiteTest, ...] = ()
    share: float = 0.0
    looks: tuple[Mapping[str, Any], ...] = ()
    reason: str = ""
    warnings: tuple[str, ...] = ()
    sha256: str | None = None
    kind: Kind = "adapter"
    claim: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "claim", CLAIMS[self.kind] if self.verdict == "verified" else "")

    @property
    def in_words(self) -> str:
        """The reading in one line, with what it claims or does not."""
        if self.log10_p is None:
            return f"{self.verdict}: {self.reason}"
        many = round(len(self.sites) / self.share) if self.share else len(self.sites)
        told = f"{self.verdict}, log10 p = {self.log10_p:.1f}, read at {len(self.sites)} of {many} carrier sites"
        return f"{told}: {self.claim or _NO_CLAIMS[self.kind]}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **asdict(self),
            "sites": [asdict(site) for site in self.sites],
            "looks": [dict(look) for look in self.looks],
            "in_words": self.in_words,
        }


def read_lineage(
    source: str | Path | Artifact,
    key: WatermarkKey,
    blank: nn.Module,
    *,
    weight_name: str | None = None,
    alpha: float = 1e-6,
    factor: int = 1,
) -> LineageReading:
    """Was this adapter trained on a model that carries the key's directions? Zero forwards, no base's weights.

    Args:
        source: an adapter's file or folder, of any spelling that `formats.lora` reads.
        key (`WatermarkKey`): the owner's; under scheme `aiao-2` drawn with the record's beacon.
        blank (`nn.Module`): a denoiser of the marked model's architecture; its values are not read, it may be on the meta device.
        weight_name (`str`, *optional*): which file of a folder is meant.
        alpha (`float`, defaults to 1e-6): chance of a false `verified`, in (0, 1).
        factor (`int`, defaults to 1): how many tests could have been shown in this one's place, such as commitments; p is multiplied
            by it.
    Returns:
        `LineageReading`: `not_testable` for an adapter that touches no site, of another width, with zero or non-finite factors, or
        of a kind that says nothing of inputs.
    Raises:
        ConfigError: alpha or factor out of range. SuspectError: no such file, several candidates, incomplete factors. UnsafeFileError: pickle
        or hostile file.
    """
    check_test(alpha, factor)
    plan = plan_carrier(blank)
    if not plan.sites:
        return LineageReading("not_testable", alpha, reason=f"{type(blank).__name__} has no carrier sites")
    layers = {layer for site in plan.sites for layer in site.layers}
    try:
        found = read_row_spaces(source, blank, layers, weight_name)
    except (NotTestableError, WrongBaseError) as error:
        return LineageReading("not_testable", alpha, reason=str(error))
    touched = [site for site in plan.sites if any(layer in found.rows for layer in site.layers)]
    unread = [
        f"{len(found.unread)} layers at carrier sites were not read, first: {why}"
        for why in list(found.unread.values())[:1]
    ]
    warnings = (*found.warnings, *unread)
    if not touched:
        reason = f"the adapter changes none of the {len(layers)} layers at the {len(plan.sites)} carrier sites"
        return LineageReading("not_testable", alpha, reason=reason, warnings=warnings, sha256=found.sha256)
    read = [(site, *of) for site in touched if any(map(is_split, of := site_responses(site, found.rows)))]
    if not read:
        reason = (
            f"the adapter's change tells no channels apart at any of the {len(touched)} carrier sites that it touches"
        )
        return LineageReading("not_testable", alpha, reason=reason, warnings=warnings, sha256=found.sha256)
    test, hits = _look(read, key, SequentialTest(alpha=alpha, factor=factor))
    told, share = [site for site, *_ in read], len(read) / len(plan.sites)
    return summarise(test, site_tests(told, hits), hits, share=share, warnings=warnings, sha256=found.sha256)


def check_test(alpha: float, factor: int) -> None:
    """Raise ConfigError for an alpha outside (0, 1), or a factor below 1."""
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must be in (0, 1), got {alpha}")
    if factor < 1:
        raise ConfigError(f"factor must be at least 1, got {factor}")


def site_tests(sites: Sequence[CarrierSite], hits: Sequence[SiteHits]) -> tuple[SiteTest, ...]:
    """Each site's hits with its own p-value, for the report."""
    return tuple(
        SiteTest(site.name, row.channels, row.hits, _site_log10_p(*row)) for site, row in zip(sites, hits, strict=True)
    )


def summarise(
    test: SequentialTest,
    sites: tuple[SiteTest, ...],
    hits: Sequence[SiteHits],
    *,
    share: float,
    warnings: tuple[str, ...] = (),
    sha256: str | None = None,
    kind: Kind = "adapter",
) -> LineageReading:
    """The reading of a finished test.

    Args:
        test: with all its looks. sites: of the first. hits: their hits, for the floor. share, warnings, sha256, kind: as of
            `LineageReading`.
    """
    looks = tuple({"label": x.label, "log10_p": x.log10_p, "log10_p_adjusted": x.log10_p_adjusted} for x in test.looks)
    floor = floor_log10_p(hits) + math.log10(2) + math.log10(test.factor)
    reading = LineageReading(test.verdict, test.alpha, test.log10_p, floor, sites, share, looks, "", warnings, sha256)
    return replace(reading, kind=kind)


def _look(
    responses: Sequence[tuple[CarrierSite, np.ndarray, np.ndarray]], key: WatermarkKey, test: SequentialTest
) -> tuple[SequentialTest, list[SiteHits]]:
    """All looks, and the hits of the first."""
    hits, ones, top = [], [], []
    for site, d, first in responses:
        v = direction(key, site)
        hits.append(count_hits(d, v))
        # Where a file tells no channels apart, their order would decide.
        ones += [rank_site(d, v)] if is_split(d) else []
        top += [count_hits(first, v)] if is_split(first) else []
    found = (rank_log10_p(ones) if ones else 0.0, folded_log10_p(top) if top else 0.0)
    for label, log10_p in zip(LOOKS, found, strict=True):
        test = test.look(label, trials=1, log10_p=log10_p)
    return test, hits


def site_responses(site: CarrierSite, rows: Mapping[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """What both looks compare with the key's direction, `(width,)` each; no key is in it.

    Args:
        rows: as `RowSpaces` has them, of at least one of the site's layers.
    """
    own = torch.cat([_of_size_one(rows[layer]) for layer in site.layers if layer in rows])
    return _of_ones(own), _of_top(own)


def _of_size_one(rows: torch.Tensor) -> torch.Tensor:
    rows = rows / rows.abs().max()  # squares of tiny ones underflow
    return rows / rows.norm()


def _of_ones(rows: torch.Tensor) -> np.ndarray:
    d: np.ndarray = (rows.T @ rows.sum(1)).numpy()
    return d


def _of_top(rows: torch.Tensor) -> np.ndarray:
    """The first right singular vector, with either sign, by the smaller Gram matrix."""
    centred = rows - rows.mean(1, keepdim=True)
    few = centred.shape[0] <= centred.shape[1]
    gram = centred @ centred.T if few else centred.T @ centred
    first = torch.linalg.eigh(gram).eigenvectors[:, -1]
    d: np.ndarray = (centred.T @ first if few else first).numpy()
    return d
