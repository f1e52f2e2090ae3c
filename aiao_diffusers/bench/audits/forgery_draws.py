"""One fixed look at a suspect with many keys, or with one key under many beacons, and the law that its p must have.

The look: rank scores of so many trials at amplitude 1, every trial on one input for all keys. Nothing of the record is checked
and nothing is spent on further looks, which favours the claimant. Given record, inputs and suspect, the p-values of two keys are
independent, for their response patterns are.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from ...denoiser.call import CallInputs
from ...denoiser.instrument import Coordinates, InstrumentedDenoiser, instrument
from ...denoiser.schedule import probe_timesteps
from ...denoiser.setup import eval_mode, placement
from ...denoiser.sites import Site
from ...mark.key import WatermarkKey
from ...mark.record import WatermarkRecord
from ...mark.selection import IN_SPAN, OUT_SPAN, choose, span
from ...mark.subpath import SubPath, draw
from ...protocol.beacon import Beacon, by_hand
from ...stats.natural_response import orthogonal_to
from ...stats.ranks import rank_log10_p, rank_site
from ...verification.alignment import Alignment, align
from .forged_claim import Claim


BATCH = 16  # keys a forward
ALPHA = 1e-6


def beacons_of(label: str, count: int, seed: int) -> list[Beacon]:
    """`count` beacons that anyone can make again; texts by hand stand in for rounds of drand, and expand alike."""
    return [by_hand(f"forgery/{seed}/{label}/{number}") for number in range(count)]


def draw_inputs(record: WatermarkRecord, denoiser: nn.Module, generator: torch.Generator, rows: int = 1) -> CallInputs:
    """Noised rows of the bank, as a trial draws them."""
    bank = record.bank.take(torch.randint(len(record.bank), (rows,), generator=generator))
    noise = torch.randn(bank.latents.shape, generator=generator)
    t = torch.randint(*probe_timesteps(record.timesteps), (rows,), generator=generator)
    device, dtype = placement(denoiser)
    return CallInputs(
        record.noised(bank.latents, noise, t).to(device, dtype),
        record.schedule.level(t).to(device),
        bank.keywords(device, dtype),
    )


def arm_rows(keys: Sequence[WatermarkKey], paths: Sequence[SubPath]) -> dict[str, torch.Tensor]:
    """Masks `(keys, C)` by in-site, each key's at its own sub-path; zeros, which move nothing, where a key has none armed."""
    rows: dict[str, torch.Tensor] = {}
    for number, (key, path) in enumerate(zip(keys, paths, strict=True)):
        for site in path.in_sites:
            masks = rows.setdefault(site.name, torch.zeros(len(keys), site.width_out))
            masks[number] = torch.from_numpy(key.trigger_mask(site.name, site.width_out)).float()
    return rows


def read_responses(
    denoiser: nn.Module, claim: Claim, keys: Sequence[WatermarkKey], *, trials: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Of each key the responses by out-site, summed over trials: through the claim's reference, or beyond its clean twin, if it
    has one."""
    record = claim.unchecked()
    sites = list(record.layout or ())
    chosen = [choose(sites, key, record.in_sites, record.out_sites, record.silent) for key in keys]
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    through = None if claim.reference is None else _align_all(claim, denoiser, sites)
    totals: list[dict[str, Any]] = [{} for _ in keys]
    with ExitStack() as stack:

        def open_up(model: nn.Module) -> InstrumentedDenoiser:
            stack.enter_context(eval_mode(model))
            return stack.enter_context(instrument(model, [site.name for site in sites], record.factors))

        wired = [open_up(model) for model in (denoiser, claim.clean_twin) if model is not None]
        for _ in range(trials):
            paths = [draw(*part, random) for part in chosen]
            inputs = draw_inputs(record, denoiser, generator)
            for start in range(0, len(keys), BATCH):
                mine = slice(start, start + BATCH)
                found = [_read_chunk(w, keys[mine], paths[mine], record, inputs, through) for w in wired]
                for total, *answers in zip(totals[mine], *found, strict=True):
                    for name, d in answers[0].items():
                        left = d if len(answers) == 1 else orthogonal_to(d, answers[1][name])
                        total[name] = total.get(name, 0.0) + left
    return totals


def log10_p_of(keys: Sequence[WatermarkKey], responses: Sequence[dict[str, np.ndarray]]) -> list[float]:
    """log10 p of each key, by rank scores; ties count as they fall."""
    return [
        rank_log10_p([rank_site(d, key.response_pattern(name, len(d))) for name, d in response.items()])
        for key, response in zip(keys, responses, strict=True)
    ]


def read_ranks(
    denoiser: nn.Module, claim: Claim, keys: Sequence[WatermarkKey], *, trials: int, seed: int
) -> list[float]:
    """log10 p of each key in the look that this module describes."""
    return log10_p_of(keys, read_responses(denoiser, claim, keys, trials=trials, seed=seed))


def _read_chunk(
    wired: InstrumentedDenoiser,
    keys: Sequence[WatermarkKey],
    paths: Sequence[SubPath],
    record: WatermarkRecord,
    inputs: CallInputs,
    through: Coordinates | None,
) -> list[dict[str, np.ndarray]]:
    # All sites, for a claimed order may put an in-site behind the out-sites that it is read at.
    outs = record.layout or ()
    if through is not None:
        outs = tuple({site.name: site for path in paths for site in path.out_sites}.values())
    rows = wired.responses(arm_rows(keys, paths), outs, record.kappa, inputs, through)
    return [
        {site.name: rows[site.name][number].double().numpy() for site in path.out_sites}
        for number, path in enumerate(paths)
    ]


def _align_all(claim: Claim, denoiser: nn.Module, sites: list[Site]) -> Alignment:
    """Maps of every site that some key may choose: they do not depend on the key."""
    assert claim.reference is not None
    return align(claim.reference, denoiser, span(sites, IN_SPAN), span(sites, OUT_SPAN))


def law_of_draws(log10_p: Sequence[float]) -> dict[str, Any]:
    """How p-values over beacon draws compare with uniform ones.

    Returns:
        JSON-ready: `draws`; `ks_p` (two-sided) and `ks_p_small` (against too many small ones), Kolmogorov and Smirnov's tests;
        `smallest` log10 p; `expected`, the range that holds the smallest of so many uniform ones 95% of the time; `verdicts`, how
        many are at most 1e-6.
    """
    p, law = 10 ** np.asarray(log10_p), stats.beta(1, len(log10_p))
    return {
        "draws": len(p),
        "ks_p": float(stats.kstest(p, "uniform").pvalue),
        "ks_p_small": float(stats.kstest(p, "uniform", alternative="greater").pvalue),
        "smallest": float(min(log10_p)),
        "expected": [math.log10(law.ppf(q)) for q in (0.025, 0.975)],
        "verdicts": sum(value <= math.log10(ALPHA) for value in log10_p),
    }
