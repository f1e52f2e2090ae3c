"""Sub-paths: which in-sites are armed and which out-sites answer, and how one is drawn at random."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..denoiser.sites import Site
from ..errors import ConfigError


@dataclass(frozen=True)
class SubPath:
    """A non-empty set of in-sites with the out-sites downstream of them, each in order of execution.

    Raises:
        ConfigError: no in-site or no out-site, or an out-site that some armed in-site does not precede.
    Source: the paper's sub-paths between arbitrary layers; sets of in-sites are our choice.
    """

    in_sites: tuple[Site, ...]
    out_sites: tuple[Site, ...]

    def __post_init__(self) -> None:
        if not self.in_sites or not self.out_sites:
            raise ConfigError("a sub-path needs at least one in-site and one out-site downstream of it.")
        first = min(site.order for site in self.in_sites)
        early = [site.name for site in self.out_sites if site.order <= first]
        if early:
            raise ConfigError(f"out-sites {early} run before every in-site of the sub-path and can never answer.")

    @property
    def name(self) -> str:
        """Orders of the in-sites, `1+5+8`: short enough for a table."""
        return "+".join(str(site.order) for site in self.in_sites)

    def until(self, channels: int) -> "SubPath":
        """The same in-sites with the first out-sites that together hold at least so many channels, or all of them."""
        kept, held = [], 0
        for site in self.out_sites:
            if held >= channels:
                break
            kept.append(site)
            held += site.width_in
        return SubPath(self.in_sites, tuple(kept))


def sub_path(in_sites: Sequence[Site], out_sites: Sequence[Site]) -> SubPath:
    """The sub-path of these in-sites: its out-sites are those after the first of them."""
    ordered = tuple(sorted(in_sites, key=lambda site: site.order))
    first = ordered[0].order if ordered else 0
    return SubPath(ordered, tuple(site for site in out_sites if site.order > first))


def draw(in_sites: Sequence[Site], out_sites: Sequence[Site], random: np.random.Generator) -> SubPath:
    """A Monte Carlo draw: uniform over the non-empty sets of in-sites."""
    number = int(random.integers(1, 2 ** len(in_sites)))
    return sub_path([site for i, site in enumerate(in_sites) if number >> i & 1], out_sites)
