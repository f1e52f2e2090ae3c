"""Is p what it claims to be? Verdicts on models that know nothing of the key, and a claimant who searches for one.

Every pair is fresh in its key, in-sites, masks, out-sites, response patterns, sub-path, timestep, probe input and noise.
Pairs of one model share its weights and the record's probe bank, nothing else: given those, their p-values are independent,
for each comes from response patterns drawn by its own key.
"""

import copy
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from scipy import stats
from torch import nn

from ...denoiser.call import evaluate
from ...denoiser.inputs import LatentData
from ...denoiser.instrument import instrument
from ...denoiser.schedule import probe_timesteps
from ...denoiser.sites import trace_on
from ...denoiser.trigger import difference
from ...files.figure import BLUE, ORANGE, new_figure
from ...files.text import markdown_table
from ...formats.checkpoint import load_denoiser
from ...formats.lora import apply_lora
from ...mark.key import WatermarkKey
from ...mark.record import WatermarkRecord
from ...mark.selection import choose
from ...mark.subpath import draw
from ...stats.hits import SiteHits, combined_log10_p, count_hits, randomised_p
from ...stats.multiple import clopper_pearson
from ..attacks.finetune import full, lora
from ..progress import Progress, log_progress


BLOCK = 100  # keys of one small search; the best of each block has a law that a test can check


@dataclass(frozen=True)
class Group:
    """Pairs of one kind of model: `log10_p` exact and discrete, `uniform` the same with its steps filled in, `(n,)`."""

    name: str
    models: int
    log10_p: np.ndarray
    uniform: np.ndarray

    def row(self, alpha: float) -> dict[str, Any]:
        """What the table says. A verdict is the first look of `verify`, which pays a factor of two."""
        n = len(self.log10_p)
        verdicts = int((self.log10_p + np.log10(2) <= np.log10(alpha)).sum())
        return {
            "group": self.name,
            "models": self.models,
            "pairs": n,
            "ks_p": float(stats.kstest(self.uniform, "uniform").pvalue),
            "share_at_1e-2": float((self.log10_p <= -2).mean()),
            "smallest_log10_p": float(self.log10_p.min()),
            "verdicts": verdicts,
            "verdicts_ci": clopper_pearson(verdicts, n),
        }


@torch.no_grad()
def readings(
    denoiser: nn.Module,
    record: WatermarkRecord,
    keys: Sequence[WatermarkKey],
    *,
    seed: int,
    batch_size: int = 16,
    amplitude: float = 1.0,
) -> Iterator[list[SiteHits]]:
    """One trial for each key, as `verify`'s first look takes it, with many keys in one forward.

    Args:
        seed (`int`): of sub-paths, timesteps, probe inputs and noise; each key draws its own.
        batch_size (`int`): keys a forward; the forward holds a clean sample and a triggered one of each, or with masks for pairs
            as many triggered ones as the key has out-sites.
    Yields:
        the key's triples `(channels, plus, hits)`, one an out-site, in the order of `keys`.
    """
    keys = [record.drawn(key) for key in keys]
    sites = list(record.layout) if record.layout is not None else trace_on(denoiser, record.bank)
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    low, high = probe_timesteps(record.timesteps)
    with instrument(denoiser, [site.name for site in sites], record.factors) as wired:
        for start in range(0, len(keys), batch_size):
            chunk = keys[start : start + batch_size]
            size = len(chunk)
            paths = [
                draw(*choose(sites, key, record.in_sites, record.out_sites, record.silent), random) for key in chunk
            ]
            # Of each triggered sample the key that it is of, and the out-site that it asks; None: all.
            asked = [
                (row, out)
                for row, path in enumerate(paths)
                for out in ([site.name for site in path.out_sites] if record.pairs else [None])
            ]
            masks: dict[str, torch.Tensor] = {}
            for number, (row, out) in enumerate(asked, size):
                for site in paths[row].in_sites:
                    rows = masks.setdefault(site.name, torch.zeros(size + len(asked), site.width_out))
                    mask = chunk[row].trigger_mask(site.name, site.width_out, out)
                    rows[number] = torch.from_numpy(mask).float()
            bank = record.bank.take(torch.randint(len(record.bank), (size,), generator=generator))
            noise = torch.randn(bank.latents.shape, generator=generator)
            t = torch.randint(low, high, (size,), generator=generator)
            sample = record.noised(bank.latents, noise, t)
            names = list(dict.fromkeys(site.name for path in paths for site in path.out_sites))
            order = torch.tensor([*range(size), *(row for row, _ in asked)])
            keywords = bank.take(order).keywords()

            level = record.schedule.level(t)[order]

            def forward(x: torch.Tensor = sample[order], t: torch.Tensor = level, keywords: Any = keywords) -> None:
                evaluate(denoiser, x, t, keywords)

            with wired.arm(masks, record.kappa * amplitude):
                entered = wired.activations(names, forward)
            for row, (key, path) in enumerate(zip(chunk, paths, strict=True)):
                result = []
                for site in path.out_sites:
                    number = size + asked.index((row, site.name if record.pairs else None))
                    triggered, clean = (entered[site.name][i : i + 1] for i in (number, row))
                    d = difference(triggered, clean).double().numpy()
                    result.append(count_hits(d, key.response_pattern(site.name, len(d))))
                yield result


def keys_of(label: str, count: int, seed: int) -> list[WatermarkKey]:
    """`count` keys that anyone can make again."""
    root = WatermarkKey(hashlib.sha256(f"nulls/{seed}/{label}".encode()).digest(), "null keys")
    return [root.child(str(number)) for number in range(count)]


def group_of(
    name: str,
    models: Sequence[nn.Module],
    record: WatermarkRecord,
    pairs: int,
    *,
    seed: int,
    batch_size: int = 16,
    progress: Progress = log_progress,
) -> Group:
    """`pairs` fresh keys, dealt to `models` in turn."""
    keys, random = keys_of(name, pairs, seed), np.random.default_rng([seed, *name.encode()])
    log10_p, uniform = [], []
    for number, denoiser in enumerate(models):
        mine = keys[number :: len(models)]
        for triples in readings(denoiser.eval(), record, mine, seed=seed + number, batch_size=batch_size):
            log10_p.append(combined_log10_p(triples))
            uniform.append(randomised_p(triples, float(random.random())))
            progress(len(log10_p), pairs, "")
    return Group(name, len(models), np.array(log10_p), np.array(uniform))


@contextmanager
def null_models(assets: Path, *, steps: int, seed: int) -> Iterator[Iterator[tuple[str, list[nn.Module]]]]:
    """The groups of models, made as they are asked for: name and denoisers, which the next group may change.

    Args:
        assets: the example's folder, with `base`, `marked`, `finetuned`, `lora`, `latents`.
        steps (`int`): optimiser steps of each fine-tune and LoRA made here.
    """
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:

        def load(name: str) -> Any:
            return load_denoiser(assets / name, dtype=torch.float32)

        def groups() -> Iterator[tuple[str, list[nn.Module]]]:
            base = load("base")
            yield "base", [base]
            styles = [LatentData.load(assets / "latents" / f"{name}.safetensors") for name in ("twemoji", "noto")]
            scheduler = DDPMScheduler.from_config(WatermarkRecord.load(assets / "marked").scheduler)
            options = {"steps": steps, "batch_size": 8}
            yield (
                "fine-tunes of base",
                [
                    full(copy.deepcopy(base), style, scheduler, lr=1e-4, seed=seed + i, **options)
                    for i, style in enumerate(styles)
                ],
            )
            adapted = []
            for i, style in enumerate(styles):
                file = lora(base, style, scheduler, Path(scratch) / str(i), rank=8, lr=1e-3, seed=seed + i, **options)
                adapted.append(copy.deepcopy(base))
                stack.enter_context(apply_lora(adapted[-1], file))
            yield "LoRAs on base", adapted
            carrier = load("marked")
            stack.enter_context(apply_lora(carrier, assets / "lora"))
            yield "marked with another key", [load("marked"), load("finetuned"), carrier]
            fresh = []
            for i in range(3):
                with torch.random.fork_rng():
                    torch.manual_seed(seed + i)
                    fresh.append(type(base).from_config(base.config))
            yield "random weights", fresh

        yield groups()


def claimant(
    denoiser: nn.Module, record: WatermarkRecord, keys: int, *, seed: int, progress: Progress = log_progress
) -> dict[str, Any]:
    """Search `keys` keys for one that verifies on a model seen beforehand.

    Theory: the smallest of n independent uniform p-values has P(min <= x) = 1 - (1 - x)^n, so the best is near 1/n, and
    a verdict at alpha (paying two) takes about 2 / alpha keys. A search that anyone can run proves nothing; what answers
    it is a commitment dated before the suspect, for a commitment fixes one key.

    Returns:
        `keys`, `best_log10_p` (discrete, hence a little large), `expected` (95% range of log10 of the best),
        `blocks` and `blocks_ks_p`: the best of each 100 keys against their law, Beta(1, 100).
    """
    found = group_of("claimant", [denoiser], record, keys, seed=seed, progress=progress)
    law = stats.beta(1, keys)
    minima = found.uniform[: keys // BLOCK * BLOCK].reshape(-1, BLOCK).min(1)
    return {
        "keys": keys,
        "best_log10_p": float(found.log10_p.min()),
        "expected": [float(np.log10(law.ppf(q))) for q in (0.025, 0.975)],
        "blocks": len(minima),
        "blocks_ks_p": float(stats.kstest(minima, stats.beta(1, BLOCK).cdf).pvalue) if keys >= BLOCK else None,
    }


def run(
    assets: Path,
    *,
    pairs: int = 10_000,
    searched: int = 10_000,
    steps: int = 60,
    seed: int = 0,
    alpha: float = 1e-6,
    progress: Progress = log_progress,
) -> tuple[dict[str, Any], np.ndarray]:
    """The whole measurement.

    Args:
        pairs (`int`): (model, key) pairs over all groups; searched (`int`): keys of the claimant. progress: told of keys of both.
    Returns:
        a JSON-ready result, and the filled-in p-values of all groups, `(pairs,)`.
    """
    record = WatermarkRecord.load(assets / "marked")
    found: list[Group] = []
    share = -(-pairs // 5)
    total = 5 * share + searched

    def told(before: int) -> Progress:
        return lambda done, _, line: progress(before + done, total, line)

    with null_models(assets, steps=steps, seed=seed) as groups:
        for name, models in groups:
            before = len(found) * share
            found.append(group_of(name, models, record, share, seed=seed, progress=told(before)))
            smallest = found[-1].log10_p.min()
            progress(before + share, total, f"{name}: {len(found[-1].log10_p)} pairs, smallest log10 p {smallest:.2f}")
    every = Group(
        "all",
        sum(group.models for group in found),
        np.concatenate([group.log10_p for group in found]),
        np.concatenate([group.uniform for group in found]),
    )
    suspect = load_denoiser(assets / "finetuned", dtype=torch.float32)
    result = {
        "alpha": alpha,
        "seed": seed,
        "steps": steps,
        "groups": [group.row(alpha) for group in (*found, every)],
        "claimant": claimant(suspect, record, searched, seed=seed, progress=told(total - searched)),
        "record": record.sha256,
        "torch": torch.__version__,
    }
    return result, every.uniform


def markdown(result: dict[str, Any]) -> str:
    """The tables for people."""
    alpha = result["alpha"]
    columns = ("group", "models", "pairs", "KS p", "share with p <= .01", "smallest log10 p")
    cells = []
    for row in result["groups"]:
        low, high = row["verdicts_ci"]
        shares = (f"{row['ks_p']:.3f}", f"{row['share_at_1e-2']:.4f}", f"{row['smallest_log10_p']:.2f}")
        verdicts = f"{row['verdicts']} ({low:.1e} to {high:.1e})"
        cells.append((row["group"], str(row["models"]), str(row["pairs"]), *shares, verdicts))
    lines = [markdown_table((*columns, f"verdicts at {alpha:g} (95% CI of rate)"), cells)]
    search = result["claimant"]
    low, high = search["expected"]
    lines += [
        "",
        f"Claimant: the best of {search['keys']} keys has log10 p = {search['best_log10_p']:.2f}; theory says {low:.2f} to "
        f"{high:.2f} (95%).",
    ]
    if search["blocks_ks_p"] is not None:
        lines.append(
            f"The best of each {BLOCK} keys against their law, {search['blocks']} blocks: KS p = {search['blocks_ks_p']:.3f}."
        )
    lines.append(f"Seed {result['seed']}, {result['steps']} steps a fine-tune, torch {result['torch']}.")
    return "\n".join(lines) + "\n"


def histogram(uniform: np.ndarray) -> Any:
    """A figure of all filled-in p-values against the uniform law; errors as `plots.new_figure`."""
    figure = new_figure(7, 3.2)
    axes = figure.subplots()
    bins = 50
    axes.hist(uniform, bins=bins, range=(0, 1), color=BLUE)
    level, spread = len(uniform) / bins, 2 * (len(uniform) / bins * (1 - 1 / bins)) ** 0.5
    axes.axhspan(level - spread, level + spread, color=ORANGE, alpha=0.3, label="uniform, 2 sd of a bar")
    axes.set(
        xlabel="p, its steps filled in", ylabel="pairs", title=f"{len(uniform)} (model, key) pairs without a mark"
    )
    axes.legend(loc="lower right")
    return figure
