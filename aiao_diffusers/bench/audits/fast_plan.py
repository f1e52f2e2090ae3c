"""What the fast plan loses and saves: attacked models and their controls, read by both plans.

Every row is one attack of a shipped suite on the shipped marked model. Controls are the unmarked base under the same attack, and
wrong keys on the attacked marked model: they say what a negative verdict costs. `aiao bench fast-plan`.
"""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...denoiser.inputs import LatentData
from ...files.text import markdown_table
from ...mark.key import WatermarkKey
from ...mark.record import WatermarkRecord
from ...stats.multiple import clopper_pearson
from ...verification.plan import ReadingPlan
from ...verification.report import VerificationReport
from ...verification.verify import verify
from ..context import AttackContext, open_pipe
from ..progress import Progress, log_progress
from ..registry import ATTACKS
from ..suite.definition import read_suite
from ..suite.tables import attack_name


COLUMNS = ("attack", "n", "thorough: verified, log10 p", "fast: verified, log10 p")
SUITES = ("quick", "sweeps")


@dataclass
class Row:
    """One attack: what both plans said of its marked models, and what the fast plan cost on their controls.

    Attributes:
        attack (`str`): with its hyper-parameters. n (`int`): seeds of the attack. thorough, fast (`list[float]`): log10 p of each
            seed. thorough_verified, fast_verified (`int`): of n. fast_evals (`list[int]`): evaluations on the marked models.
            control_evals (`list[int]`), control_verdicts (`list[str]`): of the base under the attack, and of a wrong key.
    """

    attack: str
    n: int = 0
    thorough: list[float] = field(default_factory=list)
    fast: list[float] = field(default_factory=list)
    thorough_verified: int = 0
    fast_verified: int = 0
    fast_evals: list[int] = field(default_factory=list)
    control_evals: list[int] = field(default_factory=list)
    control_verdicts: list[str] = field(default_factory=list)


def measure(
    assets: Path, suites: Sequence[str] = SUITES, seeds: int = 3, progress: Progress = log_progress
) -> list[Row]:
    """A row an attack, in the order of the suites.

    Args:
        assets (`Path`): the example models. suites (`Sequence[str]`): shipped suites whose attacks are run. seeds (`int`, defaults
            to 3): of attack and reading. progress: told of each row as it is done.
    """
    pipe, marked = (open_pipe(str(assets / name), ()) for name in ("base", "marked"))
    key, record = WatermarkKey.load(assets / "demo.key"), WatermarkRecord.load(assets / "marked")
    owner, data = (LatentData.load(assets / "latents" / f"{name}.safetensors") for name in ("noto", "twemoji"))
    rows: list[Row] = []
    asked = list(attacks(suites))
    with tempfile.TemporaryDirectory() as folder:  # for the other fine-tune of a merge, which rows share
        for name, hyper in asked:
            row = Row(attack_name({"attack": name, "hyper": hyper}))
            for seed in range(seeds):
                context = AttackContext(pipe, owner, data, seed, Path(folder))
                read_both(row, _attack(marked.unet, name, hyper, context), key, record, seed)
                base = _attack(pipe.unet, name, hyper, context)
                _control(row, verify(base, key, record=record, plan=ReadingPlan.fast(seed=seed)))
            rows.append(row)
            told = f"{row.attack}: thorough {row.thorough_verified}, fast {row.fast_verified} of {row.n}"
            progress(len(rows), len(asked), told)
    return rows


def attacks(suites: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every attack of the suites with its hyper-parameters, once."""
    seen = []
    for suite in suites:
        for cell in read_suite(suite).cells():
            asked = (cell.attack, cell.hyper)
            if asked not in seen:
                seen.append(asked)
                yield asked


def read_both(row: Row, suspect: nn.Module, key: WatermarkKey, record: WatermarkRecord, seed: int) -> None:
    """Add a suspect's readings by both plans, and by a wrong key, to its row."""
    thorough, fast = (
        verify(suspect, key, record=record, plan=plan)
        for plan in (ReadingPlan.thorough(seed=seed), ReadingPlan.fast(seed=seed))
    )
    row.n += 1
    row.thorough.append(thorough.log10_p or 0.0)
    row.fast.append(fast.log10_p or 0.0)
    row.thorough_verified += thorough.verified
    row.fast_verified += fast.verified
    row.fast_evals.append(fast.denoiser_evals)
    wrong = key.child(f"fast plan/{row.attack}/{seed}")
    _control(row, verify(suspect, wrong, record=record, plan=ReadingPlan.fast(seed=seed)))


def _control(row: Row, report: VerificationReport) -> None:
    row.control_evals.append(report.denoiser_evals)
    row.control_verdicts.append(report.verdict)


def _attack(start: nn.Module, name: str, hyper: dict[str, Any], context: AttackContext) -> nn.Module:
    return ATTACKS[name].run(copy.deepcopy(start), context, **hyper).eval()


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """What all rows come to: suspects that thorough verifies and fast does not, and what a negative costs."""
    evals = np.array([count for row in rows for count in row.control_evals])
    verdicts = [verdict for row in rows for verdict in row.control_verdicts]
    lost = [row for row in rows if row.fast_verified < row.thorough_verified]
    cheap = int((evals <= 8).sum())
    return {
        "marked": sum(row.n for row in rows),
        "thorough_verified": sum(row.thorough_verified for row in rows),
        "fast_verified": sum(row.fast_verified for row in rows),
        "lost": [f"{row.attack}: {row.thorough_verified - row.fast_verified} of {row.n}" for row in lost],
        "negatives": len(verdicts),
        "false": sum(verdict == "verified" for verdict in verdicts),
        "within_8": cheap,
        "within_8_ci": clopper_pearson(cheap, len(evals)),
        "mean_evals": float(evals.mean()),
        "median_evals": float(np.median(evals)),
    }


def to_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """JSON-ready."""
    return [asdict(row) for row in rows]


def markdown(rows: Sequence[Row]) -> str:
    """The rows on which the plans differ or the mark is in doubt, and the totals in words."""
    total = summary(rows)
    low, high = total["within_8_ci"]
    cells = [
        (row.attack, str(row.n), _cell(row.thorough_verified, row.thorough), _cell(row.fast_verified, row.fast))
        for row in rows
        if row.thorough_verified < row.n or row.fast_verified < row.n
    ]
    return "\n".join(
        [
            markdown_table(COLUMNS, cells),
            "",
            f"Marked models under {len(rows)} attacks: the thorough plan verifies {total['thorough_verified']} of {total['marked']}, the "
            f"fast plan {total['fast_verified']}; attacks that only the thorough plan reads: {', '.join(total['lost']) or 'none'}.",
            "",
            f"Negatives (the base under the same attacks, wrong keys on the attacked models): {total['within_8']} of "
            f"{total['negatives']} cost at most 8 evaluations (95% CI {low:.3f}-{high:.3f}), {total['mean_evals']:.1f} in the mean; "
            f"the thorough plan takes 128. False verdicts: {total['false']}.",
            "",
        ]
    )


def _cell(verified: int, log10_p: list[float]) -> str:
    return f"{verified}, {min(log10_p):.1f} to {max(log10_p):.1f}"
