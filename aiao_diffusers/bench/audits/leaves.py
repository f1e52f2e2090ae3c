"""What one opened leaf of a key proves, and what is left of the mark once its holder has trained it away: `aiao bench leaves`.

Each leaf is read by itself, as a judge would, on the marked model, on descendants and on the unmarked base. Then one leaf, which a
dispute's randomness picks, is trained away by whoever saw it: mask and patterns are known to them, the other leaves are not.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...denoiser.instrument import instrument
from ...denoiser.price import measure_price
from ...denoiser.sites import Site
from ...errors import LeafError
from ...files.text import markdown_table
from ...formats.checkpoint import load_denoiser
from ...mark.key import BOUND_SCHEME, WatermarkKey
from ...mark.record import WatermarkRecord
from ...protocol.beacon import by_hand
from ...protocol.leaves import disclose, leaf_by_beacon, open_leaf, split_key
from ...verification.plan import ReadingPlan
from ...verification.verify import verify
from ..attacks.exposed_mark import ExposedMark, Masks, Moved, by_channel, harden
from ..context import AttackContext, open_data, open_pipe
from ..progress import Progress, log_progress


PLAN = ReadingPlan(early_stop=False)
"""Every trial and every look at amplitude 1, and louder ones where none verifies: p is not that of the first look which suffices."""
BATCH, WEIGHT = 8, 10.0


@dataclass(frozen=True)
class Models:
    """Whose leaves are read.

    Args:
        marked (`Path`, *optional*): folder of a model marked under scheme `aiao-2`; default: the shipped one, with its fine-tune.
        descendants (`tuple[Path, ...]`): of it. key (`Path`, *optional*): its key; default: the shipped one.
    """

    marked: Path | None = None
    descendants: tuple[Path, ...] = ()
    key: Path | None = None


def train_away(
    denoiser: nn.Module,
    holder: WatermarkKey,
    sites: tuple[Site, tuple[Site, ...]],
    record: WatermarkRecord,
    context: AttackContext,
    *,
    steps: int,
    lr: float,
) -> nn.Module:
    """Train `denoiser`, in place, to answer nothing to a mask at the out-sites of a leaf, beside the ordinary noise loss.

    Args:
        holder: whose mask and patterns: a `LeafKey`, or any other key as a control. sites: the leaf's in-site and out-sites.
    """
    site, outs = sites
    asked = outs[0].name if record.pairs else None
    mask = torch.from_numpy(holder.trigger_mask(site.name, site.width_out, asked)).float()
    patterns = {out.name: torch.from_numpy(holder.response_pattern(out.name, out.width_in)).float() for out in outs}

    def masks(size: int) -> Masks:
        return {site.name: mask.expand(size, -1).to(target.device)}

    def term(moved: Moved) -> torch.Tensor:
        answers = {name: by_channel(change) for name, change in moved.items()}
        # All of it, and once more the part along the pattern, which is what a judge reads.
        along = [(d @ patterns[name].to(d) / len(patterns[name])).square().mean() for name, d in answers.items()]
        return torch.stack([d.square().mean() for d in answers.values()]).mean() + torch.stack(along).mean()

    with instrument(denoiser, [part.name for part in (site, *outs)], record.factors) as wired:
        target = ExposedMark(wired, [site], list(outs), context)
        harden(target, masks, term, steps=steps, lr=lr, batch_size=BATCH, weight=WEIGHT)
    return denoiser


def read_whole(denoiser: Any, key: WatermarkKey, record: WatermarkRecord, seed: int) -> float:
    """log10 p of the whole key by `PLAN`."""
    return verify(denoiser, key, record=record, plan=replace(PLAN, seed=seed)).log10_p or 0.0


def read_leaves(denoiser: Any, key: WatermarkKey, record: WatermarkRecord, seed: int) -> list[float]:
    """log10 p of each leaf by itself, by `PLAN`; it has paid for all leaves that could have been shown."""
    found = []
    for number in range(1, len(split_key(key, record)) + 1):
        report = verify(denoiser, disclose(key, record, number), record=record, plan=replace(PLAN, seed=seed))
        found.append(report.log10_p or 0.0)
    return found


def measure_away(
    context: AttackContext, marked: nn.Module, key: WatermarkKey, record: WatermarkRecord, *, steps: int, lr: float
) -> dict[str, Any]:
    """One leaf trained away on a copy of `marked`, and as a control another key's mask and patterns at the same sites.

    Returns:
        JSON-ready: `leaf`, `steps`, `lr`; the whole key's log10 p `before`; and of `holder` and `control` what it is `after`, the
        `share` that is left, each leaf's own, and the noise loss before and after.
    """
    count = len(split_key(key, record))
    number = leaf_by_beacon(by_hand(f"dispute/{context.seed}").randomness, record, count)
    leaf = open_leaf(disclose(key, record, number), record)
    (site,), outs = leaf.sites(list(record.layout or ()))
    before = read_whole(marked, key, record, context.seed)
    told: dict[str, Any] = {"leaf": number, "steps": steps, "lr": lr, "before": before}
    for name, who in (("holder", leaf), ("control", leaf.child("another"))):
        left = train_away(copy.deepcopy(marked), who, (site, outs), record, context, steps=steps, lr=lr)
        price = measure_price(marked, left, context.owner, context.scheduler, samples=64)
        after = read_whole(left, key, record, context.seed)
        told[name] = {
            "after": after,
            "share": after / before if before else 0.0,
            "leaves": read_leaves(left, key, record, context.seed),
            "noise_loss": [price["loss"], price["loss_marked"]],
        }
    return told


def run(
    assets: Path,
    *,
    steps: int = 100,
    lr: float = 3e-4,
    models: Models | None = None,
    seed: int = 0,
    progress: Progress = log_progress,
) -> dict[str, Any]:
    """The whole measurement.

    Args:
        steps (`int`), lr (`float`): of the holder of a leaf.
        models (`Models`, *optional*): whose leaves; default: the shipped ones.
    Returns:
        JSON-ready; `rows`, one a model, and `away`.
    Raises:
        LeafError: the mark is of a scheme without leaves.
    """
    places = (assets.absolute(),)
    models = models or Models()
    folder = models.marked or assets / "marked"
    record, held = WatermarkRecord.load(folder), WatermarkKey.load(models.key or assets / "demo.key")
    if record.scheme != BOUND_SCHEME:
        raise LeafError(f"the mark in '{folder}' is of scheme {record.scheme}, which has no leaves: pass --marked.")
    others = models.descendants if models.marked else (assets / "finetuned",)
    total = len(others) + 3
    rows: list[dict[str, Any]] = []
    for number, path in enumerate((folder, *others, assets / "base"), 1):
        denoiser = load_denoiser(path, dtype=torch.float32)
        whole, leaves = read_whole(denoiser, held, record, seed), read_leaves(denoiser, held, record, seed)
        rows.append({"model": path.name, "whole": whole, "leaves": leaves})
        progress(number, total, f"{path.name}: whole {whole:.1f}, leaves {', '.join(f'{p:.1f}' for p in leaves)}")
    pipe = open_pipe(str(folder.absolute()), ())
    owner, style = (open_data(pipe, f"latents/{name}.safetensors", places) for name in ("noto", "twemoji"))
    context = AttackContext(pipe, owner, style, seed, folder, places)
    away = measure_away(context, pipe.unet, held, record, steps=steps, lr=lr)
    progress(total, total, f"leaf {away['leaf']} trained away: {away['holder']['share']:.0%} of log10 p left")
    sites = [[site, list(outs)] for site, outs in split_key(held, record)]
    return {"sites": sites, "seed": seed, "trials": PLAN.trials, "rows": rows, "away": away, "record": record.sha256}


def markdown(result: dict[str, Any]) -> str:
    """The tables for people."""
    count = len(result["sites"])
    columns = ("model", "whole key", *(f"leaf {number}" for number in range(1, count + 1)))
    cells = [(row["model"], *(f"{p:.1f}" for p in (row["whole"], *row["leaves"]))) for row in result["rows"]]
    away = result["away"]
    trained = [
        (
            who,
            f"{left['after']:.1f} ({left['share']:.0%})",
            ", ".join(f"{p:.1f}" for p in left["leaves"]),
            "{:.4f} to {:.4f}".format(*left["noise_loss"]),
        )
        for who, left in (("leaf", away["holder"]), ("another key's, as control", away["control"]))
    ]
    told = f"Leaf {away['leaf']} trained away on the marked model, {away['steps']} steps at a learning rate of {away['lr']:g}:"
    after = markdown_table(("mask and patterns", "whole key", "each leaf", "noise loss"), trained)
    outs = ", ".join(str(len(names)) for _, names in result["sites"])
    head = f"log10 p of every look, {result['trials']} trials, seed {result['seed']}; out-sites of each leaf: {outs}"
    return f"{head}\n\n{markdown_table(columns, cells)}\n\n{told}\n\n{after}\n"
