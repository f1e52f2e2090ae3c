"""A dishonest claimant against an unmarked model, whose weights are not touched: `aiao bench forgery`.

The claimant writes key, record and commitment and wants `verified`. Each forgery is made twice: knowing how the key expands
(scheme `aiao-1`), and against guessed beacons (`aiao-2`), after which beacons are drawn. Read four ways: with the record
believed; as `verify` reads it, with another unmarked model as control; by `verify` with a judge's own probes; and under each drawn
beacon.
"""

import copy
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...denoiser.hashes import weights_sha256
from ...denoiser.inputs import LatentData
from ...denoiser.probes import Probes, capture_probes
from ...denoiser.setup import SLOTS
from ...errors import AIAOError
from ...mark.key import WatermarkKey
from ...mark.record import WatermarkRecord
from ...verification.plan import ReadingPlan
from ...verification.verify import verify
from ..attacks.finetune import full
from ..context import base_of, open_data, open_pipe
from ..progress import Progress, log_progress
from .forged_ascent import FROZEN, ascend_bank, push_twin
from .forged_claim import Claim, honest_claim
from .forged_search import permute_reference, search_key, search_layout, search_ties
from .forgery_draws import beacons_of, law_of_draws, read_ranks


NEAR = 0.25
PROMPTS = ("a red heart", "a smiling face", "a blue car", "a green tree")
_PLAN = ReadingPlan(trials=4, amplitudes=(1.0,), whiten=False, early_stop=False)
Forge = Callable[["Scene", Claim, Sequence[WatermarkKey]], Claim]


@dataclass(frozen=True)
class Effort:
    """What the claimant spends.

    Args:
        steps (`int`): of gradient ascent on a bank; half of it where the schedule is frozen, a third on a twin.
        keys (`int`): secrets tried on a public model; a third of them with a list of sites each, ten times as many where no model
            takes part.
        guesses (`int`): beacons that a forgery under `aiao-2` is made for.
        tune (`int`): steps of the fine-tune, which the claimant never sees.
    """

    steps: int = 100
    keys: int = 300
    guesses: int = 2
    tune: int = 30


@dataclass(frozen=True)
class Scene:
    """The unmarked pipeline, a fine-tune of it, a judge's probes and what the claimant spends.

    Args:
        honest (`Claim`): the truth about the unmarked model, in the claimant's name. later (`nn.Module`): the fine-tune.
        probes (`Probes`, *optional*): of the judge. seed (`int`): of the claimant; the judge's is another.
    """

    pipe: Any
    honest: Claim
    later: nn.Module
    effort: Effort = Effort()
    probes: Probes | None = None
    seed: int = 0

    @property
    def denoiser(self) -> nn.Module:
        """The unmarked one."""
        return base_of(self.pipe)

    def piped(self, denoiser: nn.Module) -> Any:
        """The pipeline with another denoiser, so that it brings its noise schedule."""
        other = copy.copy(self.pipe)
        slot = next(name for name in SLOTS if getattr(self.pipe, name, None) is self.denoiser)
        other.register_modules(**{slot: denoiser})
        return other


def _bank(
    scene: Scene, claim: Claim, guesses: Sequence[WatermarkKey], *, within: float | None = None, share: int = 1
) -> Claim:
    options: dict[str, Any] = {"steps": scene.effort.steps // share, "rows": 2 if share == 1 else 1, "within": within}
    return ascend_bank(scene.denoiser, claim, guesses, seed=scene.seed, **options)


def _frozen(scene: Scene, claim: Claim, guesses: Sequence[WatermarkKey]) -> Claim:
    return _bank(scene, claim.with_fields(scheduler=FROZEN), guesses, share=2)


def _layout(scene: Scene, claim: Claim, guesses: Sequence[WatermarkKey]) -> Claim:
    # On one row without noise, so that what suits the key in the search suits it whenever it is read.
    bare = replace(claim.with_fields(scheduler=FROZEN), bank=claim.bank.take(torch.zeros(1, dtype=torch.long)))
    keys = max(1, scene.effort.keys // 3)
    return search_layout(scene.denoiser, bare, guesses[0], keys=keys, trials=1, seed=scene.seed)


def _loudness(scene: Scene, claim: Claim, guesses: Sequence[WatermarkKey]) -> Claim:
    return search_ties(claim, guesses[0], keys=10 * scene.effort.keys)


def _twin(scene: Scene, claim: Claim, guesses: Sequence[WatermarkKey]) -> Claim:
    return push_twin(scene.denoiser, claim, guesses, steps=scene.effort.steps // 3, rows=2, seed=scene.seed)


def _reference(scene: Scene, claim: Claim, guesses: Sequence[WatermarkKey]) -> Claim:
    return permute_reference(scene.denoiser, claim, guesses, trials=8, seed=scene.seed)


def _key(scene: Scene, claim: Claim, guesses: Sequence[WatermarkKey]) -> Claim:
    return search_key(scene.denoiser, claim, guesses[0], keys=scene.effort.keys, trials=2, seed=scene.seed)


FORGERIES: dict[str, Forge] = {
    "probe bank by gradient ascent": _bank,
    "the same within .25 rms of a real row": partial(_bank, within=NEAR),
    "the same with a frozen noise schedule": _frozen,
    "list of sites in another order": _layout,
    "gains of 1e-300, so that ties decide": _loudness,
    "clean twin made with the key": _twin,
    "reference with permuted channels": _reference,
    "best of many keys on a public ancestor": _key,
}


def measure(scene: Scene, name: str, *, draws: int, trials: int) -> dict[str, Any]:
    """One row: a forgery of this name, read every way.

    Args:
        draws (`int`): beacons. trials (`int`): of each look.
    """
    forge, judge = FORGERIES[name], scene.seed + 1
    begun = time.perf_counter()
    claim = forge(scene, scene.honest, [scene.honest.key])
    seconds = time.perf_counter() - begun
    look = {"trials": trials, "seed": judge}
    believed, later = (read_ranks(model, claim, [claim.key], **look)[0] for model in (scene.denoiser, scene.later))
    first = {"seconds": seconds, "believed": believed, "later": later, **_ask(scene, claim)}
    guessed = [
        scene.honest.key.drawn_with(b.randomness) for b in beacons_of("guess", scene.effort.guesses, scene.seed)
    ]
    claim = forge(scene, scene.honest, guessed)
    keys = [claim.key.drawn_with(beacon.randomness) for beacon in beacons_of(name, draws, judge)]
    at_guesses = [claim.key.drawn_with(key.beacon) for key in guessed]
    found = read_ranks(scene.denoiser, claim, [*at_guesses, *keys], **look)
    second = {"guessed": min(found[: len(guessed)]), "refused": _refusal(claim, judge)}
    return {"forgery": name, "aiao-1": first, "aiao-2": {**second, **law_of_draws(found[len(guessed) :])}}


def _ask(scene: Scene, claim: Claim) -> dict[str, Any]:
    """What `verify` says of the claim under scheme `aiao-1`: as it stands, and with a judge's probes."""
    try:
        record = claim.unbound()
    except AIAOError as error:
        return dict.fromkeys(("verify", "probes"), {"refused": str(error)})
    offered: dict[str, Any] = {"clean_twin": claim.clean_twin, "reference": claim.reference}
    told = {"verify": _verdict(scene, claim.key, record, offered)}
    if scene.probes is not None:
        told["probes"] = _verdict(scene, claim.key, record, {"probes": scene.probes})
    return told


def _verdict(scene: Scene, key: WatermarkKey, record: WatermarkRecord, offered: dict[str, Any]) -> dict[str, Any]:
    plan = replace(_PLAN, seed=scene.seed + 1)
    controls = {"a fine-tune": scene.piped(scene.later)}
    try:
        report = verify(scene.pipe, key, record=record, plan=plan, controls=controls, **offered)
    except AIAOError as error:
        return {"refused": str(error)}
    return {
        "verdict": report.verdict,
        "log10_p": report.log10_p,
        "reason": report.reason,
        "dating": report.dating.get("status"),
    }


def _refusal(claim: Claim, seed: int) -> str | None:
    """Why the record would be refused whatever the beacon; None where it is valid."""
    try:
        claim.bound(beacons_of("valid", 1, seed)[0])
    except AIAOError as error:
        return str(error)
    return None


def measure_late(scene: Scene) -> dict[str, Any]:
    """Dates: a bank exchanged after the commitment, and a commitment made once the beacon was known.

    Returns:
        JSON-ready: `aiao-1`, what `verify` says of the exchanged bank, whose commitment is the old one; `aiao-2`, why that record is
        refused, or None; `anew`, what `verify` says of the other commitment.
    """
    beacon = beacons_of("late", 1, scene.seed)[0]
    known = [scene.honest.key.drawn_with(beacon.randomness)]
    late = replace(scene.honest, bank=_frozen(scene, scene.honest, [scene.honest.key]).bank)
    assert late.unbound().commitment == scene.honest.unbound().commitment
    try:
        replace(scene.honest.bound(beacon), bank=late.bank)
        refused = None
    except AIAOError as error:
        refused = str(error)
    anew = _frozen(scene, scene.honest, known)
    return {
        "aiao-1": _ask(scene, late.with_fields(scheduler=FROZEN))["verify"],
        "aiao-2": refused,
        "anew": _verdict(scene, anew.key, anew.bound(beacon), {}),
    }


def measure_cost(scene: Scene, repeats: int = 5) -> dict[str, Any]:
    """What a reading of an honest record costs under both schemes, in turn: evaluations, and the ratio of median seconds."""
    records = {"aiao-1": scene.honest.unbound(), "aiao-2": scene.honest.bound(beacons_of("cost", 1, scene.seed)[0])}
    seconds: dict[str, list[float]] = {scheme: [] for scheme in records}
    evaluations: dict[str, int] = {}
    for _ in range(repeats):
        for scheme, record in records.items():
            begun = time.perf_counter()
            report = verify(scene.denoiser, scene.honest.key, record=record, plan=_PLAN)
            seconds[scheme].append(time.perf_counter() - begun)
            evaluations[scheme] = report.denoiser_evals
    first, second = (sorted(values)[repeats // 2] for values in seconds.values())
    return {"evaluations": evaluations, "seconds_ratio": second / first, "repeats": repeats}


def run(
    assets: Path,
    *,
    draws: int = 100,
    trials: int = 4,
    effort: Effort | None = None,
    seed: int = 0,
    progress: Progress = log_progress,
) -> dict[str, Any]:
    """The whole measurement, on the shipped unmarked model.

    Args:
        draws (`int`): beacons a forgery. trials (`int`): of each look.
    Returns:
        JSON-ready; `rows` as `measure` has them, `late` and `cost`.
    """
    scene = open_scene(assets, effort or Effort(), seed)
    rows: list[dict[str, Any]] = []
    total = len(FORGERIES) + 2  # dates and cost too
    for name in FORGERIES:
        rows.append(measure(scene, name, draws=draws, trials=trials))
        law = rows[-1]["aiao-2"]
        line = f"{name}: log10 p {rows[-1]['aiao-1']['believed']:.1f}, drawn {law['smallest']:.1f} at least"
        progress(len(rows), total, line)
    late = measure_late(scene)
    progress(total - 1, total, f"a bank exchanged after its date: {'refused' if late['aiao-2'] else 'taken'}")
    cost = measure_cost(scene)
    progress(total, total, f"cost: {cost['seconds_ratio']:.2f} of the seconds")
    return {
        "draws": draws,
        "trials": trials,
        "seed": seed,
        "effort": asdict(scene.effort),
        "rows": rows,
        "late": late,
        "cost": cost,
        "torch": torch.__version__,
    }


def open_scene(assets: Path, effort: Effort, seed: int) -> Scene:
    """The shipped unmarked pipeline, a fine-tune of it made here, and a judge's probes."""
    places = (assets.absolute(),)
    pipe = open_pipe("base", places)
    record = WatermarkRecord.load(assets / "marked")
    style: LatentData = open_data(pipe, "latents/twemoji.safetensors", places)
    options: dict[str, Any] = {"steps": effort.tune, "lr": 1e-4, "batch_size": 8, "seed": seed}
    later = full(copy.deepcopy(pipe.unet), style, pipe.scheduler, **options)
    key = WatermarkKey(hashlib.sha256(f"claimant/{seed}".encode()).digest(), "Claimant")
    honest = honest_claim(key, record, weights_sha256(pipe.unet))
    return Scene(pipe, honest, later, effort, capture_probes(pipe, PROMPTS, seed + 7), seed)
