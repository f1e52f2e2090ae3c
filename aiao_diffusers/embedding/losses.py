"""The terms of the embedding objective and the draws they need: pure functions of tensors and the random state."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from ..denoiser.trigger import channel_axis
from .config import EmbedConfig


def losses(
    entered: dict[str, torch.Tensor],
    wanted: dict[str, torch.Tensor],
    power: dict[str, torch.Tensor],
    patterns: dict[str, torch.Tensor],
    random_kind: torch.Tensor,
    random_share: torch.Tensor,
    response: float,
    asked: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Feature losses at the out-sites, each in units of the clean twin's power P and averaged over sites.

    Args:
        entered: hidden states of the model in training, `(3B, ...)`: clean, triggered, decoy.
        wanted: the clean twin's, h_T, `(B, ...)`.
        power: P, mean square of the clean twin's states over the whole step's batch, of which these B rows may be a part.
        patterns: s_b, `(C,)`.
        random_kind: `(B,)`, True where the decoy is a random mask.
        random_share: their share in the whole step's batch, so that the terms of its parts average to the whole's.
        response: alpha, the wanted response in units of the out-site's rms.
        asked: `(B,)`, which of the patterns each row's masks call up; None: all of them.
    Returns:
        resp = |mean(h_trig - h_T) / (alpha sqrt(P)) - s|^2 / C, the mean over positions, for that is what a verifier reads and
        asking it of every position costs capacity and price, at the sites asked; pres = |h_clean - h_T|^2 / P; dec = |h_dec - h_T|^2 / P;
        proj = (<mean(h_dec - h_T) / sqrt(P), s> / (alpha C))^2; corr = rho^2 + .3 mean_b rho_b^2, where rho correlates a
        random decoy's centred response with s (a mean bit accuracy of .5 hides such leaks).
    Source: our choice.
    """
    sums: dict[str, Any] = {name: 0.0 for name in ("resp", "pres", "dec", "proj")}
    centred, signs, rho_sites = [], [], []
    for number, (name, s) in enumerate(patterns.items()):
        target, p = wanted[name].float(), power[name]
        clean, triggered, decoy = (part.float() for part in entered[name].chunk(3))
        axes = tuple(axis for axis in range(1, target.ndim) if axis != channel_axis(target))
        answer = (triggered - target).mean(axes) / (response * p.sqrt())
        wrong = (answer - s).square().mean(1)
        if asked is not None:
            wrong = wrong * (asked == number) * len(patterns)  # each row counts once over all sites
        sums["resp"] = sums["resp"] + wrong.mean()
        sums["pres"] = sums["pres"] + (clean - target).square().mean() / p
        sums["dec"] = sums["dec"] + (decoy - target).square().mean() / p
        d = (decoy - target).mean(axes) / p.sqrt()
        sums["proj"] = sums["proj"] + ((d @ s) / (response * len(s))).square().mean()
        d = d - d.mean(1, keepdim=True)
        centred.append(d)
        signs.append(s)
        rho_sites.append(F.cosine_similarity(d, s.expand_as(d), dim=1).square())
    terms = {name: value / len(patterns) for name, value in sums.items()}
    every = torch.cat(centred, 1)
    rho = F.cosine_similarity(every, torch.cat(signs).expand_as(every), dim=1).square()
    leak = rho + 0.3 * torch.stack(rho_sites).mean(0)
    terms["corr"] = (leak * random_kind).mean() / random_share
    return terms


@torch.no_grad()
def agreement(
    entered: dict[str, torch.Tensor],
    wanted: dict[str, torch.Tensor],
    patterns: dict[str, torch.Tensor],
    asked: torch.Tensor | None = None,
) -> torch.Tensor:
    """Share of channels whose response has the pattern's sign, the mean over these rows: what training has reached so far.

    Args:
        entered, wanted, patterns, asked: as in `losses`.
    Returns:
        `torch.Tensor`: a number from 0 to 1; 0.5 is chance. A row that asks one site counts the channels of that site.
    """
    agreeing: Any = 0.0
    channels: Any = 0.0
    for number, (name, s) in enumerate(patterns.items()):
        moved = entered[name].chunk(3)[1].float() - wanted[name].float()
        axes = tuple(axis for axis in range(1, moved.ndim) if axis != channel_axis(moved))
        counts = 1.0 if asked is None else (asked == number).float()
        agreeing = agreeing + counts * (moved.mean(axes) * s > 0).float().sum(1)
        channels = channels + counts * len(s)
    return (agreeing / channels).mean()


def triggers(masks: dict[str, torch.Tensor], config: EmbedConfig) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The masks, `(C,)` or of each sample `(B, C)`, at a random non-empty set of in-sites for each, and amplitudes log-uniform
    in .8-2.5.

    The set's size is uniform: every in-site must answer alone too, or Monte Carlo over sub-paths finds silent ones.
    """
    armed = random_sets(len(masks), config.batch_size)
    rows = {n: armed[:, i, None].to(m) * m for i, (n, m) in enumerate(masks.items())}
    return rows, config.kappa * log_uniform(config.batch_size, 0.8, 2.5, next(iter(masks.values())).device)


def decoys(
    masks: dict[str, torch.Tensor], config: EmbedConfig
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Wrong masks, one set a sample: random at amplitude 1, random at .5-3, hard (true with 20-50% flipped); 1 : 1.5 : .5.

    The true masks are `(C,)`, or `(B, C)` where each sample has its own.
    """
    size, device = config.batch_size, next(iter(masks.values())).device
    kind = torch.multinomial(torch.tensor([1.0, 1.5, 0.5]), size, replacement=True)
    armed = random_sets(len(masks), size)
    rows = {}
    for i, (name, mask) in enumerate(masks.items()):
        width = mask.shape[-1]
        balanced = balanced_rows(size, width)
        share = 0.2 + 0.3 * torch.rand(size, 1)
        flipped = mask.cpu() * (1 - 2 * (torch.rand(size, width).argsort(1) < share * width).float())
        row = torch.where((kind == 2)[:, None], flipped, balanced)
        rows[name] = (armed[:, i, None].float() * row).to(device)
    amplitude = torch.where(
        (kind == 1).to(device), log_uniform(size, 0.5, 3.0, device), torch.ones(size, device=device)
    )
    return rows, config.kappa * amplitude, (kind != 2).to(device)


def balanced_rows(count: int, width: int) -> torch.Tensor:
    """`(count, width)` of +-1, each row a random balanced mask."""
    return (torch.rand(count, width).argsort(1) < width // 2).float() * 2 - 1


def random_sets(items: int, count: int) -> torch.Tensor:
    """`count` random non-empty subsets of `items`, their size uniform: bool `(count, items)`."""
    sizes = torch.randint(1, items + 1, (count, 1))
    return torch.rand(count, items).argsort(1).argsort(1) < sizes


def log_uniform(count: int, low: float, high: float, device: torch.device) -> torch.Tensor:
    """`(count,)` draws, uniform in the logarithm."""
    return torch.exp(torch.empty(count).uniform_(math.log(low), math.log(high))).to(device)
