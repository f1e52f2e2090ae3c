"""Tables of `aiao bench lineage`, from what a run's folder holds."""

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import ResultsError
from ...files.atomic import write_text
from ...files.text import markdown_table
from ...stats.multiple import clopper_pearson
from .lineage_cells import METHODS, MODELS, OPTIMISERS, TARGETS, cell_of
from .lineage_price import CURVE_STEPS, paired_difference


ALPHA_LOG10 = -6.0
END = "<!-- lineage end -->"
_MARKED = re.compile(rf"<!-- lineage: (?P<part>\w+) -->.*?{END}", re.S)
Rows = Sequence[Mapping[str, Any]]
Test = Callable[[Mapping[str, Any]], bool]


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of every part that was measured."""
    return "\n\n".join(_makers()[part](result) for part, result in found.items()) + "\n"


def _makers() -> dict[str, Callable[[Mapping[str, Any]], str]]:
    return {
        "grid": grid_tables,
        "null": null_tables,
        "after": after_tables,
        "price": price_tables,
        "attackers": attacker_tables,
        "cost": cost_tables,
    }


def update(document: Path, found: Mapping[str, Any]) -> list[str]:
    """Write the tables between the marks `<!-- lineage: PART -->` and `<!-- lineage end -->` of a document, of the parts found.

    Returns:
        the parts that were written.
    Raises:
        ResultsError: the document cannot be read, or none of its marks is of a part that was found.
    """
    try:
        text = document.read_text()
    except OSError as error:
        raise ResultsError(f"'{document}' cannot be read ({error}): name a Markdown file.") from error
    written = []

    def replace(match: re.Match[str]) -> str:
        part = match["part"]
        if part not in found:
            return match[0]
        written.append(part)
        return f"<!-- lineage: {part} -->\n\n{_makers()[part](found[part])}\n\n{END}"

    changed = _MARKED.sub(replace, text)
    if not written:
        raise ResultsError(f"'{document}' has no mark '<!-- lineage: PART -->' of {', '.join(found) or 'anything'}.")
    write_text(document, changed)
    return written


def rate(values: Sequence[float]) -> str:
    """How many are at most 1e-6, and the 95% interval of their share."""
    if not values:
        return "none"
    count = sum(value <= ALPHA_LOG10 for value in values)
    low, high = clopper_pearson(count, len(values))
    return f"{count} of {len(values)} ({100 * low:.0f}% to {100 * high:.0f}%)"


def middle(values: Sequence[float]) -> str:
    """Median, and the value nearest to 0."""
    return f"{statistics.median(values):.1f}, {max(values):.1f}" if values else "none"


def smallest(values: Sequence[float]) -> str:
    """The smallest of controls."""
    return f"{min(values):.1f}" if values else "none"


def _ps(rows: Iterable[Mapping[str, Any]], side: str) -> list[float]:
    return [row["log10_p"] for row in rows if row["side"] == side and row["log10_p"] is not None]


def _gain(rows: Rows) -> str:
    """Median share of the held-out loss that training took away."""
    gains = [1 - row["loss_after"] / row["loss_before"] for row in rows if row["loss_after"] is not None]
    return f"{100 * statistics.median(gains):.1f}%" if gains else "none"


def _grid_lines(rows: Rows, tests: Mapping[str, Test]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for name, test in tests.items():
        mine = [row for row in rows if test(row)]
        own, clean = _ps(mine, "carrier"), _ps(mine, "twin")
        if mine:
            carriers = [row for row in mine if row["side"] == "carrier"]
            controls = f"{sum(p <= ALPHA_LOG10 for p in clean)} of {len(clean)}"
            lines.append((name, rate(own), middle(own), _gain(carriers), controls, smallest(clean)))
    return lines


GRID_COLUMNS = (
    "adapters",
    "carrier: p at most 1e-6 (95% CI)",
    "log10 p: median, weakest",
    "loss that training took away, median",
    "clean twin: p at most 1e-6",
    "smallest log10 p",
)


def _is(name: str, *values: Any) -> Test:
    return lambda row: row[name] in values


def _plain(row: Mapping[str, Any]) -> bool:
    return cell_of(dict(row)).usual


def _goal(row: Mapping[str, Any]) -> bool:
    return _plain(row) and row["rank"] >= 8 and row["steps"] >= 500 and row["targets"] != "conv"


OVERALL: dict[str, Test] = {
    "all": lambda row: True,
    "text-to-image": _is("kind", "base"),
    "unconditional": _is("kind", "unconditional"),
    "usual settings, rank at least 8, at least 500 steps": _goal,
    "usual settings, the rest": lambda row: _plain(row) and not _goal(row),
    "one setting unusual": lambda row: not _plain(row),
}


def _usually(name: str, *values: Any) -> Test:
    """Of usual settings alone."""
    return lambda row: row[name] in values and _plain(row)


def _by_adamw(lr: float) -> Test:
    return lambda row: row["lr"] == lr and row["optimiser"] == "adamw"


OPTIONS: dict[str, Test] = {
    **{f"rank {rank}": _usually("rank", rank) for rank in (4, 8, 16, 32, 64)},
    **{f"{steps} steps": _usually("steps", steps) for steps in (100, 200, 500, 1000, 2000)},
    **{f"lr {lr:g}": _by_adamw(lr) for lr in (1e-5, 1e-4, 2e-4, 5e-4, 1e-3)},
    **{f"batch of {size}": _usually("batch", size) for size in (1, 2, 4, 8)},
    "8 pictures": _usually("pictures", 8),
    **{f"targets: {name}": _usually("targets", name) for name in TARGETS},
    "alpha 1": _is("alpha", 1),
    **{f"method: {name}": _is("method", name) for name in METHODS[1:]},
    **{f"optimiser: {name}": _is("optimiser", name) for name in OPTIMISERS[1:]},
    "dropout 0.1": _is("dropout", 0.1),
    "dropout 0.5": _is("dropout", 0.5),
    "weight decay 0.1": _is("decay", 0.1),
    "PiSSA, converted": _is("init", "pissa"),
    "OLoRA, converted": _is("init", "olora"),
    **{f"model: {name}": _is("model", name) for name in MODELS[1:]},
}


def grid_tables(found: Mapping[str, Any]) -> str:
    """Of the grid: overall, setting by setting, and what both sides learnt."""
    rows: Rows = found["rows"]
    parts = [
        f"Trained adapters ({len(rows)}):",
        markdown_table(GRID_COLUMNS, _grid_lines(rows, OVERALL)),
        "Setting by setting (text-to-image; ranks, steps, batches, targets: usual settings alone):",
        markdown_table(GRID_COLUMNS, _grid_lines([row for row in rows if row["kind"] == "base"], OPTIONS)),
    ]
    raw = [row["raw"] | {"side": row["side"]} for row in rows if row.get("raw")]
    if raw:
        own = _ps(raw, "carrier")
        parts.append(
            f"PiSSA and OLoRA as they stand, not converted: {rate(own)} at most 1e-6, weakest {max(own):.1f}."
        )
    untestable = sum(row["verdict"] == "not_testable" for row in rows)
    parts.append(f"Not testable: {untestable} of {len(rows)}.")
    parts.append(_learning(rows))
    return "\n\n".join(parts)


def _learning(rows: Rows) -> str:
    """Held-out loss of the same configuration on both sides; merges and fine-tunes of the two sides differ by themselves."""
    sides: dict[str, dict[str, float]] = {"carrier": {}, "twin": {}}
    for row in rows:
        same = cell_of({**row, "side": "carrier"}).id
        if row["loss_after"] is not None and row["model"] in ("whole", "int8"):
            sides[row["side"]][same] = row["loss_after"]
    pairs = [(sides["twin"][name], loss) for name, loss in sides["carrier"].items() if name in sides["twin"]]
    if len(pairs) < 2:
        return "Learning on both sides: not enough pairs yet."
    told = paired_difference(pairs)
    return f"Held-out loss after training, carrier less clean twin, same configuration and draws: {_percent(told)}."


def _percent(told: Mapping[str, float]) -> str:
    return (
        f"{100 * told['mean']:+.3f}% (95% CI {100 * told['low']:+.3f}% to {100 * told['high']:+.3f}%, n {told['n']})"
    )


def null_tables(found: Mapping[str, Any]) -> str:
    """p on controls."""
    columns = ("controls", "files", "pairs", "look", "KS p", "p <= .1", "p <= .01", "p <= .001", "smallest log10 p")
    lines: list[tuple[str, ...]] = []
    for group in found["groups"]:
        if not group["pairs"]:
            continue
        head = (group["group"], str(group["files"]), str(group["pairs"]))
        told = [*group["looks"].items(), ("adjusted", group["adjusted"])]
        for label, look in told:
            shares = [f"{look[f'share_{level:g}']:.4f}" for level in (0.1, 0.01, 0.001)]
            ks = f"{look['ks_p']:.3f}" if "ks_p" in look else "conservative"
            lines.append((*head, label, ks, *shares, f"{look['smallest']:.2f}"))
    told = [
        f"{group['group']}: {group['verdicts']} verdicts of {group['pairs']} at {group['alpha']:g} (95% CI of the rate "
        f"{group['verdicts_ci'][0]:.1e} to {group['verdicts_ci'][1]:.1e}); the smallest of as many uniform p is expected at "
        f"log10 {group['expected_smallest'][0]:.2f} to {group['expected_smallest'][1]:.2f} (95%)."
        for group in found["groups"]
        if group["pairs"]
    ]
    rivals = found["rivals"]
    if rivals["n"]:
        told.append(
            f"Under the key of another carrying model: {rivals['n']} files, smallest log10 p {rivals['smallest']:.2f}."
        )
    return "\n\n".join(["p on controls:", markdown_table(columns, lines), "\n".join(f"- {line}" for line in told)])


AFTER_COLUMNS = (
    "what happens to the file",
    "carrier: p at most 1e-6 (95% CI)",
    "log10 p: median, weakest",
    "clean twin: p at most 1e-6",
    "smallest log10 p",
)


def _after_lines(rows: Rows) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for name in dict.fromkeys(row["transform"] for row in rows):
        mine = [row for row in rows if row["transform"] == name]
        own, clean = _ps(mine, "carrier"), _ps(mine, "twin")
        controls = f"{sum(p <= ALPHA_LOG10 for p in clean)} of {len(clean)}"
        lines.append((name, rate(own), middle(own), controls, smallest(clean)))
    return lines


def after_tables(found: Mapping[str, Any]) -> str:
    """Transforms, merges, extraction, and formats."""
    rows = [*found["transforms"], *found["extraction"], *found["merges"]]
    parts = ["After training:", markdown_table(AFTER_COLUMNS, _after_lines(rows))]
    lines: list[tuple[str, ...]] = []
    for name in dict.fromkeys(row["transform"] for row in found["conversions"]):
        mine = [row for row in found["conversions"] if row["transform"] == name]
        read = [row for row in mine if row["log10_p"] is not None]
        if read:
            off = max(abs(row["log10_p"] - row["plain"]) for row in read)
            lines.append((name, f"{len(read)} of {len(mine)}", f"{off:.2f}"))
        else:
            lines.append((name, f"0 of {len(mine)}", "not testable"))
    columns = ("format of the same change", "files read", "largest difference of log10 p from diffusers' keys")
    return "\n\n".join([*parts, markdown_table(columns, lines)])


def price_tables(found: Mapping[str, Any]) -> str:
    """Predictions, learning, and the sub-path mark."""
    columns = (
        "model",
        "key",
        "price, float32",
        "largest difference",
        "bfloat16: price, rounding alone",
        "float16: price, rounding alone",
        "50:50 merge with the twin",
    )
    lines: list[tuple[str, ...]] = []
    for row in found["prices"]:
        halves = [
            f"{row['halves'][name]['price']:.3g}, {row['halves'][name]['rounding']:.3g}"
            for name in ("bfloat16", "float16")
        ]
        lines.append(
            (
                row["kind"],
                str(row["key"]),
                f"{row['price']:.1e}",
                f"{row['largest']:.1e}",
                *halves,
                f"{row['merged']:.1e}",
            )
        )
    parts = ["Price, as a share of the noise loss:", markdown_table(columns, lines)]
    learnt = []
    for steps in (0, *CURVE_STEPS):
        sides = {
            side: {row["seed"]: row["loss"] for row in found["curves"] if (row["side"], row["steps"]) == (side, steps)}
            for side in ("twin", "carrier")
        }
        pairs = [(sides["twin"][seed], loss) for seed, loss in sides["carrier"].items() if seed in sides["twin"]]
        if len(pairs) > 1:
            means = [f"{statistics.mean(values):.5f}" for values in zip(*pairs, strict=True)]
            learnt.append((str(steps), *means, _percent(paired_difference(pairs))))
    parts += [
        "Held-out loss of a LoRA (rank 16, all seeds the same on both sides):",
        markdown_table(("steps", "clean twin", "carrier", "carrier less clean twin"), learnt),
    ]
    beside = [
        (name, told["verdict"], f"{told['log10_p']:.2f}", f"{told['bits']:.3f}")
        for name, told in found["beside"].items()
    ]
    parts += [
        "The sub-path mark of the shipped model, before and after a carrier was added:",
        markdown_table(("", "verdict", "log10 p", "bit accuracy"), beside),
    ]
    return "\n\n".join(parts)


def attacker_tables(found: Mapping[str, Any]) -> str:
    """What each attacker reaches and pays."""
    columns = (
        "attacker",
        "verified",
        "log10 p of each key",
        "first look",
        "second look",
        "gain lost",
        "gain lost on the published model",
        "price of the changed base",
        "seconds",
        "wrong key, smallest log10 p",
    )
    plain = {row["key"]: row["gain"] for row in found["rows"] if row["attacker"] == "none"}
    lines: list[tuple[str, ...]] = []
    for name in dict.fromkeys(row["attacker"] for row in found["rows"]):
        mine = [row for row in found["rows"] if row["attacker"] == name]
        ps = [row["log10_p"] or 0.0 for row in mine]
        looks = [", ".join(f"{row['looks'].get(look, 0.0):.1f}" for row in mine) for look in ("ones", "top")]
        lost = [
            f"{100 * (1 - statistics.mean(row[gain] / plain[row['key']] for row in mine)):.0f}%"
            for gain in ("gain", "gain_published")
        ]
        cost = f"{statistics.mean(row['price'] for row in mine):.1e}"
        lines.append(
            (
                name,
                f"{sum(p <= ALPHA_LOG10 for p in ps)} of {len(ps)}",
                ", ".join(f"{p:.1f}" for p in ps),
                *looks,
                *lost,
                cost,
                f"{statistics.mean(row['seconds'] for row in mine):.1f}",
                f"{min(row['wrong_key'] or 0.0 for row in mine):.1f}",
            )
        )
    head = f"Attackers without the key (rank {found['rank']}, {found['steps']} steps at {found['lr']:g}, {found['targets']}):"
    return f"{head}\n\n{markdown_table(columns, lines)}"


def cost_tables(found: Mapping[str, Any]) -> str:
    """Time and memory."""
    columns = ("what", "file, MiB", "sites", "ms", "ms of one core", "memory, MiB")
    lines = [
        (
            row["file"],
            "" if row["file_mib"] is None else f"{row['file_mib']:.1f}",
            "" if row["sites"] is None else str(row["sites"]),
            f"{1000 * row['seconds']:.0f}",
            f"{1000 * row['core_seconds']:.0f}",
            "unknown" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        )
        for row in found["rows"]
    ]
    one = found["rate"]
    told = f"{one['readings']} readings of the example's adapter: {one['an_hour']:.0f} an hour of one core."
    return "\n\n".join(["Cost of a reading:", markdown_table(columns, lines), told])
