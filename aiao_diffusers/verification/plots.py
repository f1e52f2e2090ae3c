"""Pictures of a report, by matplotlib (the `plots` extra); imported only where a picture is asked for."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from scipy import stats

from ..files.figure import BLUE, GREY, ORANGE, new_figure
from .outcome import VerificationOutcome


def short(site: str) -> str:
    """`up_blocks.1.attentions.2.transformer_blocks.0.attn1` as `up1.2.attn1`."""
    parts = site.replace(".transformer_blocks.0", "").replace("_blocks.", "").replace("_block", "").split(".")
    return ".".join(part for part in parts if part != "attentions")


def null_law(channels: list[int]) -> np.ndarray:
    """Exact law of the summed agreements under the null, shape `(sum of C // 2 + 1,)`: entry j is the chance of
    `sum(C) - 2 sum(C // 2) + 2 j` hits."""
    laws = [stats.hypergeom(c, c // 2, c // 2).pmf(np.arange(c // 2 + 1)) for c in channels]
    return reduce(np.convolve, laws)


def sites(axes: Any, outcome: VerificationOutcome) -> None:
    """Each out-site's share of agreeing bits against the null's mean and two standard deviations."""
    rows = range(len(outcome.sites))
    axes.barh(rows, [s.hits / s.channels for s in outcome.sites], color=BLUE, label="read")
    # Var(hits) = C^2 / (4 (C - 1)) for a balanced split.
    spread = [1 / (s.channels - 1) ** 0.5 for s in outcome.sites]
    axes.errorbar([0.5] * len(spread), rows, xerr=spread, fmt="|", color=ORANGE, label="null, 2 sd")
    axes.set_yticks(rows, [short(s.name) for s in outcome.sites])
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 1), xlabel="share of agreeing bits", title="Carrier sites" if outcome.asks_lineage else "Out-sites"
    )
    axes.legend(loc="lower right", fontsize=8)


def null(axes: Any, outcome: VerificationOutcome) -> None:
    """What wrong response patterns read, the exact null, and what the key reads."""
    channels = [s.channels for s in outcome.sites]
    total, law = sum(channels), null_law(channels)
    shares = (total - 2 * sum(c // 2 for c in channels) + 2 * np.arange(len(law))) / total
    wrong = np.array(outcome.controls.get("wrong_response", {}).get("hits", [])) / total
    seen = law > law.max() * 1e-6
    if len(wrong):
        axes.hist(wrong, bins=15, density=True, color=GREY, alpha=0.6, label=f"{len(wrong)} wrong patterns")
    axes.plot(shares[seen], law[seen] * total / 2, color=ORANGE, label="exact null")
    axes.axvline(outcome.bit_accuracy, color=BLUE, label=f"this key: {outcome.bit_accuracy:.3f}")
    axes.set(xlim=(min(0.3, shares[seen][0]), 1), yticks=[], xlabel="share of agreeing bits, all sites")
    axes.set_title(f"Null and observed, log10 p = {outcome.log10_p:.1f}")
    axes.legend(loc="upper center", fontsize=8)


def subpaths(axes: Any, outcome: VerificationOutcome) -> None:
    """Mean share of agreeing bits at each out-site over the plain trials in which each in-site was armed."""
    ins = list(dict.fromkeys(name for trial in outcome.subpaths for name in trial["in"]))
    outs = [s.name for s in outcome.sites]
    grid = np.full((len(ins), len(outs)), np.nan)
    for i, name in enumerate(ins):
        armed = [trial["bits"] for trial in outcome.subpaths if name in trial["in"]]
        for j, out in enumerate(outs):
            read = [bits[out] for bits in armed if out in bits]
            grid[i, j] = np.mean(read) if read else np.nan
    image = axes.imshow(grid, vmin=0.5, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(outs)), [short(name) for name in outs], rotation=30, ha="right")
    axes.set_yticks(range(len(ins)), [short(name) for name in ins])
    axes.set_title(f"In-site armed, out-site read ({len(outcome.subpaths)} plain trials)")
    axes.figure.colorbar(image, ax=axes, label="agreeing bits")


def rate(axes: Any, outcome: VerificationOutcome) -> None:
    """The verification rate with its 95% Clopper-Pearson interval."""
    low, high = outcome.verification_rate_ci or (0.0, 1.0)
    value = outcome.verification_rate or 0.0
    axes.errorbar([value], [0], xerr=[[value - low], [high - value]], fmt="o", color=BLUE, capsize=4)
    axes.set(xlim=(-0.03, 1.03), ylim=(-1, 1), yticks=[], xlabel="share of single trials that verify on their own")
    axes.set_title(f"Verification rate {value:.2f}, 95% interval {low:.2f}-{high:.2f}, {outcome.trials} trials")


PANELS: dict[str, tuple[Callable[[Any, VerificationOutcome], None], float, float]] = {
    "sites": (sites, 7, 3.2),
    "null": (null, 7, 3.2),
    "subpaths": (subpaths, 7, 3.6),
    "rate": (rate, 7, 1.6),
}


def _fills(name: str, outcome: VerificationOutcome) -> bool:
    """Whether an outcome has what a panel draws; a reading without trials has no rate, one of a single look no sub-paths."""
    needed = {"subpaths": bool(outcome.subpaths), "rate": outcome.verification_rate is not None}
    return bool(outcome.sites) and needed.get(name, True)


def panels(outcome: VerificationOutcome) -> dict[str, Any]:
    """One figure for each panel that the outcome can fill; none where nothing was read."""
    drawn = {}
    for name, (draw, width, height) in PANELS.items():
        if _fills(name, outcome):
            drawn[name] = new_figure(width, height)
            draw(drawn[name].subplots(), outcome)
    return drawn


def figure(outcome: VerificationOutcome) -> Any:
    """All panels as one figure; an outcome without a reading gives its verdict and reason in words."""
    result = new_figure(13, 7.5)
    result.suptitle(f"{outcome.verdict}: {outcome.suspect}")
    if not outcome.sites:
        result.text(0.5, 0.5, outcome.reason or "nothing was read", ha="center", wrap=True)
        return result
    axes = result.subplots(2, 2)
    for place, (name, (draw, _, _)) in zip(axes.flat, PANELS.items(), strict=True):
        if not _fills(name, outcome):
            place.set_axis_off()
        else:
            draw(place, outcome)
    return result
