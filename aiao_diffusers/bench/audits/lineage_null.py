"""Is the lineage reading's p what it claims to be? Adapters that know nothing of a key, and fresh keys.

A file's responses depend on no key, so they are computed once; each pair of a file and a key has a key of its own. Given the
files, p-values of pairs are therefore independent.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from torch import nn

from ...formats.row_space import read_row_spaces
from ...lineage.reading import LOOKS, site_responses
from ...lineage.site import CarrierSite, direction
from ...lineage.sites import plan_carrier
from ...mark.key import WatermarkKey
from ...stats.folded import folded_log10_p
from ...stats.hits import SiteHits, count_hits, is_split
from ...stats.multiple import clopper_pearson
from ...stats.ranks import SiteScore, rank_log10_p, rank_site
from ..progress import Progress


Triples = Sequence[tuple[int, int, int]]
TAILS: tuple[Callable[[Triples], float], ...] = (rank_log10_p, folded_log10_p)
LEVELS = (0.1, 0.01, 0.001)


@dataclass(frozen=True)
class FileResponses:
    """One adapter's responses of both looks by carrier site; no key is in them."""

    sites: tuple[CarrierSite, ...]
    ones: tuple[np.ndarray, ...]
    top: tuple[np.ndarray, ...]

    @classmethod
    def read(cls, file: Path, blank: nn.Module) -> "FileResponses | None":
        """Of a file; None where it touches no site."""
        plan = plan_carrier(blank)
        rows = read_row_spaces(file, blank, {layer for site in plan.sites for layer in site.layers}).rows
        sites = tuple(site for site in plan.sites if any(layer in rows for layer in site.layers))
        if not sites:
            return None
        found = [site_responses(site, rows) for site in sites]
        return cls(sites, tuple(d for d, _ in found), tuple(d for _, d in found))

    def compare(self, key: WatermarkKey) -> tuple[list[SiteScore], list[SiteHits]]:
        """What both looks count."""
        directions = [direction(key, site) for site in self.sites]
        ones = [rank_site(d, v) for d, v in zip(self.ones, directions, strict=True) if is_split(d)]
        return ones, [count_hits(d, v) for d, v in zip(self.top, directions, strict=True) if is_split(d)]


class PairTail:
    """log10 p of a look, and the same with its steps filled in; tails of equal sums over equal widths are computed once."""

    def __init__(self, look: int) -> None:
        self.look = look
        self._held: dict[tuple[tuple[tuple[int, int], ...], int], float] = {}

    def __call__(self, triples: Triples, u: float) -> tuple[float, float]:
        """log10 p, and p made continuous by `u` in [0, 1): uniform where the null hypothesis holds."""
        p, beyond = (self._tail(found) for found in (triples, self._next(triples)))
        return p, float(10**beyond + u * (10**p - 10**beyond))

    def _tail(self, triples: Triples) -> float:
        total = sum(_surplus(*triple) if self.look else triple[2] for triple in triples)
        place = tuple(sorted((channels, plus) for channels, plus, _ in triples)), total
        if place not in self._held:
            self._held[place] = min(0.0, TAILS[self.look](triples))
        return self._held[place]

    def _next(self, triples: Triples) -> Triples:
        """Triples of the next larger sum."""
        changed = list(triples)
        for n, (channels, plus, value) in enumerate(triples):
            if self.look == 0:
                changed[n] = (channels, plus, value + 1)
                return changed
            up = 2 * value >= channels
            if (value + 2 <= channels) if up else (value - 2 >= 0):
                changed[n] = (channels, plus, value + 2 if up else value - 2)
                return changed
        return changed


def _surplus(channels: int, plus: int, hits: int) -> int:
    n = min(plus, channels - plus)
    return abs(hits - (channels - 2 * n) - n)


def fresh_keys(label: str, count: int, seed: int) -> list[WatermarkKey]:
    """`count` keys that anyone can make again and that marked nothing."""
    root = WatermarkKey(hashlib.sha256(f"lineage null/{seed}/{label}".encode()).digest(), "null keys")
    return [root.child(str(number)) for number in range(count)]


def measure_pairs(
    name: str, files: Sequence[tuple[Path, nn.Module]], pairs: int, *, seed: int, alpha: float, progress: Progress
) -> dict[str, Any]:
    """Fresh keys dealt to files in turn.

    Args:
        files: adapters, each with a denoiser of its architecture. pairs: how many; each has its own key.
    Returns:
        JSON-ready: of each look `ks_p`, shares of p at most .1, .01, .001 and the smallest; of the adjusted p the same shares, the
        smallest, and verdicts with their interval.
    """
    random = np.random.default_rng([seed, *name.encode()])
    keys, done = fresh_keys(name, pairs, seed), 0
    own: list[list[float]] = [[] for _ in LOOKS]
    filled: list[list[float]] = [[] for _ in LOOKS]
    adjusted: list[float] = []
    tails, used = [PairTail(look) for look in range(len(LOOKS))], 0
    for number, (file, blank) in enumerate(files):
        mine = keys[number :: len(files)]
        found = FileResponses.read(file, blank)
        if found is None:
            continue
        used += 1
        for key in mine:
            smallest = 0.0
            ones, top = found.compare(key)
            compared: tuple[Triples, Triples] = ones, top
            for look, (tail, triples) in enumerate(zip(tails, compared, strict=True)):
                p, uniform = tail(triples, float(random.random()))
                own[look].append(p)
                filled[look].append(uniform)
                smallest = min(smallest, p + (look + 1) * float(np.log10(2)))
            adjusted.append(smallest)
        done += len(mine)
        progress(done, pairs, "")
    if not adjusted:
        return {"group": name, "files": 0, "pairs": 0}
    looks = {
        label: _shares(own[look]) | {"ks_p": float(stats.kstest(filled[look], "uniform").pvalue)}
        for look, label in enumerate(LOOKS)
    }
    verdicts = sum(p <= np.log10(alpha) for p in adjusted)
    told = {"group": name, "files": used, "pairs": len(adjusted), "alpha": alpha, "looks": looks}
    interval = clopper_pearson(int(verdicts), len(adjusted))
    expected = [float(np.log10(stats.beta(1, len(adjusted)).ppf(q))) for q in (0.025, 0.975)]
    return told | {
        "adjusted": _shares(adjusted),
        "verdicts": int(verdicts),
        "verdicts_ci": interval,
        "expected_smallest": expected,
    }


def _shares(log10_p: list[float]) -> dict[str, Any]:
    found = np.array(log10_p)
    shares = {f"share_{level:g}": float((found <= np.log10(level)).mean()) for level in LEVELS}
    return shares | {"smallest": float(found.min())}
