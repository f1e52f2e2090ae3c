"""How near trigger inversion comes to the true masks and to the mark's answer: `aiao bench inversion`.

An attacker without the key climbs from random masks to those that move the out-sites most (`attacks.inversion.invert`). Two
questions, each with controls: are the masks found like the key's, by cosine, more than they are like 200 other keys'? And do
they call up the key's response patterns, which training could then remove? The unmarked base is asked the same.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...files.text import markdown_table
from ...mark.key import WatermarkKey
from ...mark.mark import Mark
from ...mark.record import WatermarkRecord
from ...stats.hits import combined_log10_p, count_hits
from ...verification.evidence import key_sites
from ..attacks.exposed_mark import Masks, by_channel, expose
from ..attacks.inversion import invert
from ..context import AttackContext, open_data, open_pipe
from ..progress import Progress, log_progress


COLUMNS = (
    *("model", "seed", "nearest mask, abs. cosine", "of other keys, median and largest", "share of keys as near"),
    *("log10 p of the key's answer", "under random masks"),
)
OTHERS = 200
SAMPLES = 32


@dataclass(frozen=True)
class Nearness:
    """What one run of inversion found.

    Args:
        cosine (`float`): largest |cosine| of a found mask with the key's, over starts and the key's in-sites (and, with a
            mask for each pair of sites, its out-sites).
        others (`list[float]`): the same for each of `OTHERS` unrelated keys, against the same found masks.
        log10_p (`float`): of the key's response patterns under the best start, times the number of starts (and, with a mask
            for each pair of sites, of out-sites, each by itself).
        random_log10_p (`float`): the same under as many random masks.
    """

    cosine: float
    others: list[float]
    log10_p: float
    random_log10_p: float

    @property
    def p(self) -> float:
        """Share of keys, the true one included, whose masks the found ones are as near to: exact, for keys are alike."""
        return (1 + sum(other >= self.cosine for other in self.others)) / (1 + len(self.others))


def nearness(
    denoiser: nn.Module, key: WatermarkKey, record: WatermarkRecord, context: AttackContext, *, starts: int, steps: int
) -> Nearness:
    """Invert `denoiser` without `key`, then compare with it. The denoiser's weights stay."""
    key = record.drawn(key)
    ins, outs = key_sites(denoiser, key, record)
    with expose(denoiser, context) as target:
        found = invert(target, starts=starts, steps=steps)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(context.seed)
            answers = []
            for masks in (found, target.masks(starts)):
                rows: dict[str, torch.Tensor] = {}
                for _ in range(SAMPLES):
                    _, moved = target.forward(target.draw(starts), masks, torch.ones(starts, device=target.device))
                    for site in outs:
                        rows[site.name] = rows.get(site.name, 0.0) + by_channel(moved[site.name]).double().cpu()
                answers.append(_best(rows, key, starts, record.pairs))
    others = [_cosine(found, Mark(key.child(f"other/{n}"), ins, outs, record.pairs)) for n in range(OTHERS)]
    return Nearness(_cosine(found, Mark(key, ins, outs, record.pairs)), others, *answers)


def _cosine(found: Masks, mark: Mark) -> float:
    """Largest |cosine| of a found mask, `(starts, C)` by in-site, with one of the mark's own."""
    near = (
        torch.nn.functional.cosine_similarity(found[name].cpu()[:, None], rows[None], dim=2)
        for name, rows in mark.masks(torch.device("cpu")).items()
    )
    return max(float(cosines.abs().max()) for cosines in near)


def _best(rows: dict[str, torch.Tensor], key: WatermarkKey, starts: int, pairs: bool) -> float:
    """The smallest p over starts, times their number; with `pairs` over out-sites too, for a mask calls up one of them."""
    sites = [[name] for name in rows] if pairs else [list(rows)]
    patterns = {name: key.response_pattern(name, d.shape[1]) for name, d in rows.items()}
    values = [
        combined_log10_p([count_hits(rows[name][start].numpy(), patterns[name]) for name in names])
        for start in range(starts)
        for names in sites
    ]
    return min(0.0, min(values) + math.log10(len(values)))


def run(assets: Path, *, seeds: int, starts: int, steps: int, progress: Progress = log_progress) -> dict[str, Any]:
    """The whole measurement, on the shipped marked model and on the unmarked one.

    Args:
        seeds (`int`): of inversion. starts, steps (`int`): random masks it climbs from, and its steps.
    Returns:
        JSON-ready; `rows`, one a model and seed.
    """
    places = (assets.absolute(),)
    key, record = WatermarkKey.load(assets / "demo.key"), WatermarkRecord.load(assets / "marked")
    rows: list[dict[str, Any]] = []
    for name in ("marked", "base"):
        pipe = open_pipe(name, places)
        data = open_data(pipe, "latents/twemoji.safetensors", places)
        for seed in range(seeds):
            context = AttackContext(pipe, data, data, seed, assets, places)
            found = nearness(pipe.unet, key, record, context, starts=starts, steps=steps)
            others = sorted(found.others)
            row: dict[str, Any] = {
                "model": name,
                "seed": seed,
                "cosine": found.cosine,
                "p": found.p,
                "log10_p": found.log10_p,
            }
            row |= {"others": [others[len(others) // 2], others[-1]], "random_log10_p": found.random_log10_p}
            rows.append(row)
            progress(len(rows), 2 * seeds, f"{name}, seed {seed}: cosine {found.cosine:.3f}")
    return {"starts": starts, "steps": steps, "other_keys": OTHERS, "samples": SAMPLES, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """The table for people, one row a model and seed."""
    cells = []
    for row in result["rows"]:
        middle, largest = row["others"]
        near = (f"{row['cosine']:.3f}", f"{middle:.3f}, {largest:.3f}", f"{row['p']:.3f}")
        cells.append((row["model"], str(row["seed"]), *near, f"{row['log10_p']:.1f}", f"{row['random_log10_p']:.1f}"))
    told = f"{result['starts']} starts of {result['steps']} steps; {OTHERS} other keys; {SAMPLES} samples a reading"
    return f"{told}\n\n{markdown_table(COLUMNS, cells)}\n"
