"""How loud a trigger has to be at each in-site, and from which sites no trigger reaches the out-sites at all.

Attention outputs weigh very differently in the residual stream that they are added to: a mask of one rms at a cross-attention
of the example's outer blocks moves what enters the following site by less than a tenth, at the self-attention before it by
half. A trigger that hardly moves anything is a weak in-site, alone and after attacks. So each candidate's amplitude is
multiplied by a factor. And some sites do not matter to the model: what is added there is gone before the out-sites, so no key
may use them. Both are measured with random masks on the clean denoiser, which knows no key; the record publishes the factors of
all candidates, so they tell nothing of which ones the key uses.

In a transformer a block's output is gated, and a mask moves the next site little; but nothing damps it on its way, so there each
mask keeps its amplitude: louder ones make the mark weaker.

Source: our choice.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..denoiser.call import evaluate
from ..denoiser.inputs import LatentData
from ..denoiser.instrument import instrument, repeat
from ..denoiser.schedule import noise_schedule, probe_timesteps
from ..denoiser.setup import eval_mode, placement
from ..denoiser.sites import Site
from ..denoiser.trigger import channel_axis
from ..mark.selection import IN_SPAN, OUT_SPAN, span
from .losses import balanced_rows


WANTED = 0.8  # share of the following site's input that a random mask shall move
KEPT = 0.5  # of what a mask moves at the following site: where as much arrives at the out-sites, it is loud enough
REACH = 0.01  # of the furthest-reaching candidate's, below which a site is none
SAMPLES = 16


@torch.no_grad()
def site_gain(
    denoiser: nn.Module,
    sites: Sequence[Site],
    data: LatentData,
    schedule: dict[str, Any],
    *,
    most: float,
    least: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Factors on the trigger's amplitude by in-site, of every site that some key may use.

    Args:
        denoiser (`nn.Module`): the clean one.
        sites: all of the denoiser's, in order of execution.
        data (`LatentData`): clean latents with conditioning, of which rows are drawn.
        schedule: the noise schedule's config.
        most (`float`): the largest factor; 1 leaves every in-site as it is.
        least (`int`, defaults to 1): so many candidates stay, the furthest-reaching ones, however little they reach.
        seed (`int`, defaults to 0): of rows, noise and masks.
    Returns:
        `dict[str, float]`: from 1 to `most`: `WANTED` over the rms of what random masks move at the following site, in units of its clean rms; 1
            where more than `KEPT` of that arrives at the out-sites. 0: no
        candidate, for what masks move at the out-sites on average over positions is below `REACH` of the best candidate's.
    """
    candidates, outs = span(list(sites), IN_SPAN), span(list(sites), OUT_SPAN)
    if most == 1 or len(sites) < 2:
        return {site.name: 1.0 for site in candidates}
    generator = torch.Generator().manual_seed(seed)
    rows = data.take(torch.randint(len(data), (SAMPLES,), generator=generator))
    noise = torch.randn(rows.latents.shape, generator=generator)
    noising = noise_schedule(schedule)
    t = torch.randint(*probe_timesteps(noising.steps), (SAMPLES,), generator=generator)
    device, dtype = placement(denoiser)
    sample = noising.add_noise(rows.latents, noise, t).to(device, dtype)
    stacked, times, keywords = (
        repeat(value, 2) for value in (sample, noising.level(t).to(device), rows.keywords(device, dtype))
    )
    amplitude = torch.cat([torch.zeros(SAMPLES), torch.ones(SAMPLES)]).to(device)
    gains, reach = {}, {}
    with (
        eval_mode(denoiser),
        torch.random.fork_rng(),
        instrument(denoiser, [site.name for site in sites]) as instrumented,
    ):
        torch.manual_seed(seed)
        for site, following in zip(candidates, sites[1:], strict=False):
            mask = balanced_rows(SAMPLES, site.width_out).to(device)
            names = list(dict.fromkeys([following.name, *(out.name for out in outs)]))
            with instrumented.arm({site.name: torch.cat([mask, mask])}, amplitude):
                entered = instrumented.activations(names, lambda: evaluate(denoiser, stacked, times, keywords))
            shift = _measure_shift(entered[following.name], over_positions=False)
            # A site that moves nothing, or whose states are broken, gets the most: embedding will tell.
            far = sum(_measure_shift(entered[out.name], over_positions=True) for out in outs) / len(outs)
            needed = WANTED / shift if shift > 0 else most
            gains[site.name] = 1.0 if far > KEPT * shift > 0 else round(min(max(needed, 1.0), most), 3)
            reach[site.name] = gains[site.name] * far
    furthest = sorted(reach, key=lambda name: -reach[name])
    kept = {name for name in furthest if reach[name] >= REACH * reach[furthest[0]]} | set(furthest[:least])
    return {name: gain if name in kept else 0.0 for name, gain in gains.items()}


def _measure_shift(entered: torch.Tensor, *, over_positions: bool) -> float:
    """Rms of what a trigger moved, in units of the clean rms; the average over positions, which a verifier reads, or each."""
    clean, triggered = entered.float().chunk(2)
    change = triggered - clean
    if over_positions:
        change = change.mean([axis for axis in range(1, change.ndim) if axis != channel_axis(change)])
    return (change.square().mean() / clean.square().mean()).sqrt().item()
