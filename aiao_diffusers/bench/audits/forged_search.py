"""Forgeries by search and by sorting: keys, lists of sites, gains, and the channels of a reference; nothing is trained."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from ...denoiser.instrument import instrument
from ...denoiser.setup import eval_mode
from ...denoiser.sites import Site
from ...mark.key import WatermarkKey
from ...mark.selection import IN_SPAN, OUT_SPAN, span
from ...stats.ranks import rank_site, scores
from ...verification.reference import observe
from .forged_claim import Claim
from .forgery_draws import draw_inputs, read_ranks, read_responses


SILENT_GAIN = 1e-300
"""Above 0, so that a site counts as an in-site, and far below what moves any activation."""


def keys_to_search(key: WatermarkKey, count: int) -> Iterator[WatermarkKey]:
    """`count` other secrets of the same owner, under the same beacon."""
    for number in range(count):
        secret = hashlib.sha256(f"search/{number}".encode() + key.secret).digest()
        yield replace(key, secret=secret)


def search_key(denoiser: nn.Module, claim: Claim, guess: WatermarkKey, *, keys: int, trials: int, seed: int) -> Claim:
    """The best of so many secrets on the unmarked model, with nothing else forged."""
    tried = list(keys_to_search(guess, keys))
    found = read_ranks(denoiser, claim, tried, trials=trials, seed=seed)
    best = min(zip(found, range(keys), strict=True))[1]
    return replace(claim, key=tried[best].drawn_with(None))


def permute_reference(
    denoiser: nn.Module, claim: Claim, guesses: Sequence[WatermarkKey], *, trials: int, seed: int
) -> Claim:
    """A reference whose channels stand where the patterns want what the model answers anyway.

    Sites that several guesses choose follow the sum of their patterns.
    """
    honest = observe(denoiser, claim.bank, claim.fields["scheduler"])
    wanted: dict[str, np.ndarray] = {}
    answered: dict[str, np.ndarray] = {}
    for key, response in zip(guesses, read_responses(denoiser, claim, guesses, trials=trials, seed=seed), strict=True):
        for name, d in response.items():
            wanted[name] = wanted.get(name, 0) + key.response_pattern(name, len(d))
            answered[name] = answered.get(name, 0) + d
    entering = dict(honest.entering)
    for name, d in answered.items():
        order = np.empty(len(d), dtype=np.int64)
        order[np.argsort(-wanted[name], kind="stable")] = np.argsort(-d, kind="stable")
        entering[name] = entering[name][..., torch.from_numpy(order)]
    crafted = replace(honest, entering=entering)
    return replace(claim.with_fields(reference_sha256=crafted.sha256), reference=crafted)


def search_layout(
    denoiser: nn.Module, claim: Claim, guess: WatermarkKey, *, keys: int, trials: int, seed: int
) -> Claim:
    """Sites listed so that the key chooses the in-site and the out-sites that suit it, with the best of so many secrets."""
    claim = claim.with_fields(loudness=None)
    sites = list(claim.fields["layout"])
    early, places = span(sites, IN_SPAN), len(span(sites, OUT_SPAN))
    record = claim.unchecked()
    best: tuple[float, WatermarkKey, Site, tuple[str, ...]] | None = None
    generator = torch.Generator().manual_seed(seed)
    with eval_mode(denoiser), instrument(denoiser, [site.name for site in sites], record.factors) as wired:
        inputs = [draw_inputs(record, denoiser, generator) for _ in range(trials)]
        for key in keys_to_search(guess, keys):
            # One row for each in-site that could be the only one.
            masks = {site.name: torch.zeros(len(early), site.width_out) for site in early}
            for row, site in enumerate(early):
                masks[site.name][row] = torch.from_numpy(key.trigger_mask(site.name, site.width_out)).float()
            read = [wired.responses(masks, sites[1:], record.kappa, given) for given in inputs]
            for row, site in enumerate(early):
                after = sites[sites.index(site) + 1 :]
                d = {out.name: np.stack([part[out.name][row].numpy() for part in read]).sum(0) for out in after}
                deviations, outs = _best_sites(key, d, places)
                if best is None or deviations > best[0]:
                    best = (deviations, key, site, outs)
    assert best is not None
    return _list_sites(claim, best[1], best[2], best[3])


def search_ties(claim: Claim, guess: WatermarkKey, *, keys: int) -> Claim:
    """Gains so small that nothing moves and the order of the channels decides, with the key and the list of sites that suit it.

    No model takes part.
    """
    sites = list(claim.fields["layout"])
    places = len(span(sites, OUT_SPAN))
    first, rest = sites[0], sites[1:]
    tied = {site.name: np.zeros(site.width_in) for site in rest}
    tried = ((*_best_sites(key, tied, places), key) for key in keys_to_search(guess, keys))
    _, outs, key = max(tried, key=lambda found: found[0])
    gains = tuple(SILENT_GAIN for _ in sites)
    return _list_sites(claim, key, first, outs).with_fields(loudness=gains)


def _best_sites(key: WatermarkKey, d: dict[str, np.ndarray], most: int) -> tuple[float, tuple[str, ...]]:
    """The out-sites, `most` of them at most, whose answers together suit the key best, and in standard deviations how well."""
    scored = []
    for name, response in d.items():
        site = rank_site(response, key.response_pattern(name, len(response)))
        scored.append((site.score, _variance(site.channels, site.plus), name))
    scored.sort(key=lambda row: row[0] / row[1] ** 0.5, reverse=True)
    totals = np.cumsum([row[0] for row in scored[:most]]) / np.cumsum([row[1] for row in scored[:most]]) ** 0.5
    best = int(np.argmax(totals))
    return float(totals[best]), tuple(name for _, _, name in scored[: best + 1])


@lru_cache(maxsize=64)
def _variance(channels: int, plus: int) -> float:
    """Of a site's score: a sum over `plus` channels drawn without replacement."""
    return float((scores(channels) ** 2).sum()) * plus * (channels - plus) / (channels * (channels - 1))


def _list_sites(claim: Claim, key: WatermarkKey, first: Site, outs: tuple[str, ...]) -> Claim:
    """The claim of `key` with its sites listed so that it chooses `first` as its in-site and `outs` as its out-sites."""
    sites = list(claim.fields["layout"])
    places = range(len(sites))
    wanted: dict[int, Any] = {}
    for label, share, names in (("in", IN_SPAN, [first.name]), ("out", OUT_SPAN, list(outs))):
        # The key shuffles places and never looks at names.
        candidates = list(places[round(share[0] * len(sites)) : round(share[1] * len(sites))])
        wanted |= dict(zip(key.shuffled(f"schedule/{label}", candidates), names, strict=False))
    others = (site for site in sites if site.name not in wanted.values())
    by_name = {site.name: site for site in sites}
    listed = [by_name[wanted[place]] if place in wanted else next(others) for place in places]
    layout = tuple(replace(site, order=place) for place, site in enumerate(listed))
    fields = {"layout": layout, "loudness": None, "in_sites": 1, "out_sites": len(outs)}
    return replace(claim.with_fields(**fields), key=key.drawn_with(None))
