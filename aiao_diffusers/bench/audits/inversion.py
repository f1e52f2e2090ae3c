"""How near trigger inversion comes to the true masks and to the mark's answer: `aiao bench inversion`.

An attacker without the key climbs from random masks to those that move the out-sites most (`attacks.inversion.invert`). Two
questions, each with controls: are the masks found like the key's, by cosine, more than they are like 200 other keys'? And do
they call up the key's response patterns, which training could then remove? The unmarked base is asked the same.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ...files.text import table_head, table_row
from ...mark.key import WatermarkKey
from ...mark.mark import Mark
from ...mark.record import WatermarkRecord
from ...stats.hits import combined_log10_p, count_hits
from ...verification.evidence import key_sites
from ..attacks.exposed_mark import Masks, by_channel, expose
from ..attacks.inversion import invert
from ..context import AttackContext


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


def main(words: list[str] | None = None, prog: str | None = None) -> None:
    """Prints a Markdown table, one row a model and seed."""
    from ..context import open_data, open_pipe

    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=Path("examples/emoji_diffusion"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args(words)
    places = (args.assets.absolute(),)
    key = WatermarkKey.load(args.assets / "demo.key")
    record = WatermarkRecord.load(args.assets / "marked")
    print(f"{args.starts} starts of {args.steps} steps; {OTHERS} other keys; {SAMPLES} samples a reading\n")
    print(table_head(COLUMNS))
    for name in ("marked", "base"):
        pipe = open_pipe(name, places)
        data = open_data(pipe, "latents/twemoji.safetensors", places)
        for seed in range(args.seeds):
            context = AttackContext(pipe, data, data, seed, args.assets, places)
            found = nearness(pipe.unet, key, record, context, starts=args.starts, steps=args.steps)
            others = sorted(found.others)
            spread = f"{others[len(others) // 2]:.3f}, {others[-1]:.3f}"
            depths = (f"{found.log10_p:.1f}", f"{found.random_log10_p:.1f}")
            print(table_row((name, str(seed), f"{found.cosine:.3f}", spread, f"{found.p:.3f}", *depths)), flush=True)


if __name__ == "__main__":
    main()
