"""Markdown from results: every number with its n and an interval, failures included, nothing typed by hand."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigError, ResultsError
from ...files.atomic import write_text
from ...files.text import markdown_table
from ...stats.multiple import clopper_pearson
from .. import attacks as _attacks  # noqa: F401 (fills the registry, which labels come from)
from ..registry import ATTACKS, known
from . import results as results


Rows = Sequence[dict[str, Any]]


def table(files: str | Path | Sequence[str | Path], *, sections: Sequence[str] = (), any_version: bool = False) -> str:
    """Markdown of one or several results files (or folders).

    Args:
        sections: of `SECTIONS`, in this order; default: all.
        any_version (`bool`, defaults to False): accept lines of another format or version.
    Raises:
        ResultsError: missing, altered, or of another version. ConfigError: an unknown section.
    """
    names = [known("section", name, SECTIONS) for name in sections] or list(SECTIONS)
    rows = load(files, any_version=any_version)
    return "\n\n".join(SECTIONS[name](rows) for name in names) + "\n"


def load(files: str | Path | Sequence[str | Path], *, any_version: bool = False) -> list[dict[str, Any]]:
    """Rows of several files; of one cell measured twice (a model changed under its name) the last one counts."""
    paths = [files] if isinstance(files, str | Path) else list(files)
    if not paths:
        raise ResultsError("no results file was named: pass at least one.")
    names, last = ("kind", "suite", "alpha", "model", "data", "mark", "attack", "seed"), {}
    for path in paths:
        for row in results.read(path, any_version=any_version):
            # A reference hangs on what is measured too: one without pictures does not take the place of one with them.
            spec = ATTACKS.get(row.get("attack", ""))
            # With the defaults of today: an attack that has got a further choice since is still the same one.
            hyper = {**spec.hyper, **row["hyper"]} if spec is not None else row.get("hyper")
            cell = [_has_pictures(row), hyper, *(row.get(name) for name in names)]
            last[json.dumps(cell, sort_keys=True)] = row
    if not last:
        raise ResultsError(f"no results in {[str(path) for path in paths]}: run a suite first.")
    return list(last.values())


def _has_pictures(row: dict[str, Any]) -> bool:
    return row["kind"] == "reference" and bool(row["quality"].get("images"))


def update(document: str | Path, *, any_version: bool = False) -> list[str]:
    """Rewrite the generated parts of a Markdown file, between `<!-- bench: SECTION FILE ... -->` and `<!-- end -->`.

    Files are results, named from the document's folder: the document says itself what it was made from.

    Returns:
        what was written, as in the document.
    Raises:
        ConfigError: an unknown section, or one without its end. ResultsError: as for `read`; then nothing is written.
    """
    path, written, text = Path(document), [], ""
    try:
        rest = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"no document to update at '{path}' ({error}).") from error
    while True:
        before, start, rest = rest.partition("<!-- bench: ")
        text += before
        if not start:
            break
        what, _, rest = rest.partition(" -->")
        _, end, rest = rest.partition("<!-- end -->")
        if not end:
            raise ConfigError(f"section '{what}' of '{path}' has no '<!-- end -->'.")
        name, *files = what.split()
        generated = table([path.parent / file for file in files], sections=[name], any_version=any_version)
        text += f"{start}{what} -->\n{generated}{end}"
        written.append(what)
    write_text(path, text)
    return written


def cells_of(rows: Rows) -> list[dict[str, Any]]:
    """The verdicts, without the references; first of the model as published, for several processes finish in any order."""
    return sorted((row for row in rows if row["kind"] == "cell"), key=lambda row: row["attack"] != "none")


def attack_name(row: dict[str, Any]) -> str:
    """The attack with its strength and whatever differs from its defaults."""
    spec = ATTACKS.get(row["attack"])
    shown = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row["hyper"].items()
        if spec is None or name == spec.strength or value != spec.hyper.get(name)
    ]
    return row["attack"] + (f" ({', '.join(shown)})" if shown else "")


def grouped(rows: Rows, *names: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Verdicts by these fields; `attack_name` stands for the attack with its hyper-parameters. Order of appearance."""
    result: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in cells_of(rows):
        result[tuple(attack_name(row) if n == "attack_name" else row[n] for n in names)].append(row)
    return result


def verdicts(rows: Rows) -> str:
    """One table a mark: verdicts, evidence, controls and cost of every attack."""
    parts = []
    for (model, data, mark, suite, alpha), own in grouped(rows, "model", "data", "mark", "suite", "alpha").items():
        keys = len({row["key"] for row in own})
        head = f"**{mark}** on {model}, attacker's data {data}{_of(suite, rows)}; keys and embeddings: {keys}; alpha {alpha:g}"
        columns = ["attack", "verified", "95% CI", "log10 p: median, worst", "bits", "trials passed", "95% CI"]
        columns += ["controls' best log10 p: base, wrong key", "noise loss against base", "CMMD", "CLIP-score"]
        columns += ["same-seed distance"]
        parts.append(
            head
            + "\n\n"
            + markdown_table(columns, [_verdict_cells(g) for _, g in grouped(own, "attack_name").items()])
        )
    return "\n\n".join(parts)


def looks(rows: Rows) -> str:
    """One table for each mark of a model and data: log10 p of each look that all its cells have, before any pays for having been
    taken; last, the smallest that any of these looks at a control reached."""
    parts = []
    looked = [row for row in cells_of(rows) if row.get("looks")]
    for (model, data, mark, suite, _), own in grouped(looked, "model", "data", "mark", "suite", "alpha").items():
        labels = [label for label in own[0]["looks"] if all(label in row["looks"] for row in own)]
        lines = []
        for (name,), group in grouped(own, "attack_name").items():
            by_look = [[row["looks"][label] for row in group] for label in labels]
            controls = [p for r in group for name in r.get("controls", {}) for p in _control_looks(r, name).values()]
            evidence = (f"{statistics.median(p):.1f}, {max(p):.1f}" for p in by_look)
            lines.append([name, str(len(group)), *evidence, f"{min(controls):.1f}" if controls else "-"])
        columns = ["attack", "n", *labels, "controls, any look"]
        head = f"**{mark}** on {model}, attacker's data {data}{_of(suite, looked)}, log10 p by look: median, worst"
        parts.append(f"{head}\n\n{markdown_table(columns, lines)}")
    return "\n\n".join(parts) or "No cell has looks."


def _of(suite: str, rows: Rows) -> str:
    """Which suite, where a table is of several: their readings are not pooled."""
    return f", suite {suite}" if len({row["suite"] for row in cells_of(rows)}) > 1 else ""


def _control_looks(row: dict[str, Any], name: str) -> dict[str, float]:
    """The looks at a control; not those beyond the twin where the control is the twin itself, left as it was by the attack: it
    answers nothing beyond itself, and what ties give then controls nothing."""
    found = row["controls"][name].get("looks") or {}
    unchanged = row["attack"] == "none" or "base" in (row["hyper"].get("other"), row["hyper"].get("student"))
    return {
        label: p
        for label, p in found.items()
        if not (name == "base" and unchanged and label.startswith("beyond the twin"))
    }


def _verdict_cells(group: Rows) -> list[str]:
    n, found = len(group), sum(row["verdict"] == "verified" for row in group)
    low, high = clopper_pearson(found, n)
    ps = values(group, "log10_p")
    evidence = f"{statistics.median(ps):.1f}, {max(ps):.1f}{_without(ps, group)}" if ps else statistic(group)
    controls = [c for name in ("base", "wrong_key") for c in [_control(group, name)]]
    return [
        attack_name(group[0]),
        f"{found}/{n}",
        f"{low:.2f}-{high:.2f}",
        evidence,
        mean(values(group, "bits"), 3),
        *rate(group),
        ", ".join(controls),
        _loss(group),
        _cmmd([row["quality"] for row in group if row.get("quality")]),
        mean(costs(group, "clip_score"), 3),
        mean(costs(group, "perceptual"), 3),
    ]


def _without(found: Sequence[float], group: Rows) -> str:
    """How many rows have no such number, for the others would flatter: a ruined model's is not finite, or cannot be read."""
    missing = len(group) - len(found)
    return f" ({missing} of {len(group)} without)" if missing else ""


def _control(group: Rows, name: str) -> str:
    """The smallest log10 p that a control reached, and how many controls verified, if any."""
    controls = [row["controls"][name] for row in group if "controls" in row]
    ps = values(controls, "log10_p")
    wrong = sum(c["verdict"] == "verified" for c in controls)
    text = f"{min(ps):.1f}" if ps else "-"
    return f"{text} (**{wrong}/{len(controls)} verified**)" if wrong else text


def _cmmd(qualities: Rows) -> str:
    """CMMD, with a star where pictures of one prompt were compared with each other, which pulls it down."""
    found = [q for q in qualities if q.get("cmmd") is not None]
    text = mean([q["cmmd"] for q in found], 2)
    return f"{text} *" if any("clip_score" in q and not q.get("cmmd_paired") for q in found) else text


def _loss(group: Rows) -> str:
    """Mean change of the noise loss on the owner's data, in percent of the unmarked base's, and its standard deviation."""
    changes = [
        100 * (q["loss_owner"] / q["base_loss_owner"] - 1)
        for row in group
        if (q := row.get("quality") or {}).get("loss_owner")
    ]
    spread = f" sd {statistics.stdev(changes):.0f}" if len(changes) > 1 else ""
    asked = [row for row in group if "loss_owner" in (row.get("quality") or {})]
    return f"{statistics.fmean(changes):+.0f}%{spread}{_without(changes, asked)}" if changes else "-"


def rate(group: Rows) -> tuple[str, str]:
    """Verification rate over all trials of a group, and its interval; '-' where the method draws no trials.

    The interval is that of one model's trials. Where models differ, those with least and most are named beside it.
    """
    passed, trials = sum(row.get("passed", 0) for row in group), sum(row.get("trials", 0) for row in group)
    if not trials:
        return "-", "-"
    low, high = clopper_pearson(passed, trials)
    shares = {row["passed"] / row["trials"] for row in group if row.get("trials")}
    spread = f"; models {min(shares):.2f}-{max(shares):.2f}" if len(shares) > 1 else ""
    return f"{passed / trials:.3f} (n {trials})", f"{low:.3f}-{high:.3f}{spread}"


def compare(rows: Rows) -> str:
    """The verification rate of all marks side by side, and its drop against the same models as published; a table for each
    model and data."""
    note = "Models verified; share of single trials that pass alone, its 95% interval, and its change in points."
    parts = [note]
    for (model, data, suite, _), here in grouped(rows, "model", "data", "suite", "alpha").items():
        marks = list(dict.fromkeys(row["mark"] for row in here))
        lines = [
            [name, *(_comparison([row for row in group if row["mark"] == mark], here) for mark in marks)]
            for (name,), group in grouped(here, "attack_name").items()
        ]
        parts.append(
            f"{model}, attacker's data {data}{_of(suite, rows)}:\n\n" + markdown_table(["attack", *marks], lines)
        )
    return "\n\n".join(parts)


def _comparison(own: Rows, here: Rows) -> str:
    """One cell of `compare`: rows of one mark under one attack; `here` holds those of the models as published too."""
    if not own:
        return "-"
    trials, passed = sum(r.get("trials", 0) for r in own), sum(r.get("passed", 0) for r in own)
    text = f"{sum(r['verdict'] == 'verified' for r in own)}/{len(own)}"
    if not trials:
        return text
    low, high = clopper_pearson(passed, trials)
    text += f"; {100 * passed / trials:.0f}% ({100 * low:.0f}-{100 * high:.0f})"
    # Against the same seeds: a suite cut short holds some attacks with fewer.
    seeds = {row["seed"] for row in own}
    before = [r for r in here if r["mark"] == own[0]["mark"] and r["attack"] == "none" and r["seed"] in seeds]
    drawn = sum(r.get("trials", 0) for r in before)
    if own[0]["attack"] == "none" or not drawn or {row["seed"] for row in before} != seeds:
        return text
    return f"{text}, {100 * (passed / trials - sum(r['passed'] for r in before) / drawn):+.0f}"


def wins(rows: Rows) -> str:
    """Where attacks win: every verdict that is not `verified`, and every control that is."""
    lines = []
    for (model, mark, name, *_), group in grouped(rows, "model", "mark", "attack_name", "suite", "alpha").items():
        # What must not verify, such as a merge that kept nothing, is a control and no loss.
        lost = [r for r in group if r["verdict"] != "verified" and r.get("expect") != "not_verified"]
        false = sum(c["verdict"] == "verified" for row in group for c in row.get("controls", {}).values())
        if not lost and not false:
            continue
        ps = values(lost, "log10_p")
        errors = {row["error"] for row in lost if row.get("error")}
        seen = "; ".join([*(f"{p:.1f}" for p in sorted(ps)), *sorted(errors)]) or statistic(group)
        lines.append([model, mark, name, f"{len(lost)}/{len(group)}", seen, f"{false}/{2 * len(group)}", _loss(group)])
    if not lines:
        return "No cell was lost and no control verified."
    return markdown_table(
        ["model", "mark", "attack", "not verified", "log10 p", "false `verified`", "noise loss against base"], lines
    )


def reference(rows: Rows) -> str:
    """The spread between two seeds of the unmarked base, beside which quality is to be read; n is of rows, by what they hold."""
    lines = []
    by_model: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    # Suites share seeds, and a seed counts once: that with pictures before that without.
    for row in sorted((row for row in rows if row["kind"] == "reference"), key=_has_pictures):
        by_model[row["model"], row["data"]][row["seed"]] = row
    for (model, data), seeds in by_model.items():
        group = list(seeds.values())
        both = [[row[k] for row in group] for k in ("quality", "again")]
        pictured = sum(map(_has_pictures, group))
        cells = [model, data, f"{len(group)}, {pictured}"]
        for told in (_mean_of("loss_owner", 4), _mean_of("loss_data", 4), _cmmd, _mean_of("clip_score", 3)):
            cells.append(" / ".join(map(told, both)))
        cells.append(mean(costs(group, "perceptual_two_seeds"), 3))
        lines.append(cells)
    columns = [
        "model",
        "data",
        "n of losses, of pictures",
        "noise loss, owner's data",
        "noise loss, attacker's",
        "CMMD",
    ]
    columns += ["CLIP-score", "distance of the two seeds"]
    return "The unmarked base with two seeds (first / second).\n\n" + markdown_table(columns, lines)


def _mean_of(name: str, digits: int) -> Callable[[Rows], str]:
    return lambda qualities: mean(values(qualities, name), digits)


def provenance(rows: Rows) -> str:
    """Versions, seeds and hashes behind the tables."""
    cells = cells_of(rows)
    made = sorted({f"{n} {v}" for row in rows for n, v in row["versions"].items()})
    parts = [
        f"Suites {sorted({row['suite'] for row in rows})}, {len(cells)} cells, seeds {sorted({row['seed'] for row in cells})}.",
        f"Made with {', '.join(made)}.",
        f"Finished {min(row['finished'] for row in rows)} to {max(row['finished'] for row in rows)}.",
    ]
    for name in ("base", "marked"):
        found = sorted({row["hashes"][name][:12] for row in cells if "hashes" in row})
        parts.append(f"SHA-256 of {name} weights: {', '.join(found)}.")
    seconds = sum(sum(row.get("seconds", {}).values()) for row in cells)
    return "\n".join([*parts, f"Attacks, readings and quality took {seconds / 60:.0f} process minutes."])


def values(rows: Rows, name: str) -> list[float]:
    """The values of a field that are not None."""
    return [row[name] for row in rows if row.get(name) is not None]


def costs(rows: Rows, name: str) -> list[float]:
    """The values of a quality figure."""
    return [row["quality"][name] for row in rows if row.get("quality", {}).get(name) is not None]


def statistic(rows: Rows) -> str:
    """The rule's own statistic, of a method without a p-value."""
    found = values(rows, "statistic")
    return f"statistic {min(found):.3f}..{max(found):.3f}" if found else "-"


def mean(numbers: Sequence[float], digits: int) -> str:
    """Mean and, from two values on, its standard deviation."""
    if not numbers:
        return "-"
    spread = f" sd {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.{digits}f}{spread}"


SECTIONS = {
    "verdicts": verdicts,
    "looks": looks,
    "compare": compare,
    "wins": wins,
    "reference": reference,
    "provenance": provenance,
}
