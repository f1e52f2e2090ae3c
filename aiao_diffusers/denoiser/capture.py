"""Learn from a pipeline how its denoiser is called, whatever its family, and condition prompts as the pipeline does.

The pipeline runs with two numbers of prompts, unguided. What of the denoiser's call follows the number is a row, what is equal is
shared; the scheduler says which argument is the sample, how times follow its own, and with which sign a prediction is used. A
call counts only if `evaluate` with it gives again what the scheduler was given, at each of three steps.

Source: our choice.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import DataError
from .call import ROWS_OF, DenoiserCall
from .derivation import TOLERANCE, Derived, derive, replayed
from .inputs import LatentData
from .recording import KEPT, Heard, NotRunError, NotUnderstoodError
from .request import (
    PROMPTS,
    ROWS,
    STEPS,
    Request,
    attempts,
    check_options,
    check_prompts,
    fewer_places,
    named_denoiser,
    scheduler_config,
    takes_prompts,
)
from .rows import Rows, assembled, on_cpu, rows_like, same
from .schedule import has_betas, noise_schedule
from .tokens import longest


BATCH = 16
MOST_STEPS = 24
"""Of a run that waits for a denoiser which has but a part of the schedule."""
SHORT = "a"
"""A text that is shorter than others: pipelines pad to the longest of a batch, and some leave masks out that hide nothing."""
_ADVICE = "pass data=LatentData(latents, conditioning, DenoiserCall(...)) that says how it is called."


@dataclass(frozen=True)
class Captured:
    """What a pipeline was seen to give its denoiser.

    Args:
        data (`LatentData`): a row for each prompt; its `call` is the one learnt, its latents the scheduler's last.
        options (`Mapping[str, Any]`): what the pipeline is given beside prompts, so that each prediction is of one call.
        replay (`float`): largest difference of a prediction replayed by `evaluate`, over the largest prediction.
        denoiser (`str`): name of the denoiser among the pipeline's parts.
        off (`Mapping[str, float]`): those of the options that switch guidance off.
    """

    data: LatentData
    options: Mapping[str, Any]
    replay: float
    denoiser: str
    off: Mapping[str, float]

    @property
    def call(self) -> DenoiserCall:
        """How the denoiser is called."""
        return self.data.call


class _Part(NamedTuple):
    """A batch of rows, with the call that it came with."""

    call: DenoiserCall
    rows: Rows
    latents: torch.Tensor


def learn(
    pipeline: Any,
    prompts: Sequence[str] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    rows: Mapping[str, Sequence[Any]] | None = None,
    denoiser: str | None = None,
    seed: int = 0,
) -> Captured:
    """How a pipeline calls its denoiser.

    Args:
        pipeline: of any class of diffusers' that has a denoiser and a scheduler.
        prompts (`Sequence[str]`, *optional*): all are run at once; to less than three some of ours are added. None for a pipeline
            that takes none.
        options (`Mapping[str, Any]`, *optional*): for the pipeline's call, such as height and width. Guidance is its own matter,
            unless an option sets it.
        rows (`Mapping[str, Sequence[Any]]`, *optional*): options of which each prompt has its own: pictures, class labels, seconds.
        denoiser (`str`, *optional*): name of the pipeline's part, such as "transformer_2"; default: its unet or transformer.
        seed (`int`, defaults to 0): of the pipeline's noise.
    Returns:
        `Captured`, with a row for each prompt given, or for each of ours.
    Raises:
        ConfigError: the scheduler is neither of betas nor of flow matching.
        DataError: the pipeline lacks parts or does not run, or its denoiser is called in a way that no `DenoiserCall` says: the
            message says what was not understood.
    Warns when prompts are longer than the pipeline reads.
    """
    name, module = named_denoiser(pipeline, denoiser)
    noise_schedule(scheduler_config(pipeline))
    options, rows = dict(options or {}), dict(rows or {})
    given = None
    if prompts is not None or takes_prompts(pipeline):
        given = check_prompts(pipeline, PROMPTS if prompts is None else prompts, options)
    kept = len(given) if given is not None else max([ROWS, *map(len, rows.values())])
    asked = Request(pipeline, module, given and [*given, *PROMPTS][: max(ROWS, kept)], rows, options)
    check_options(pipeline, options, rows, max(ROWS, kept))
    failures: list[DataError] = []
    for off in attempts(pipeline, options):
        try:
            return _learn_once(replace(asked, off=off), name, kept, seed, grow=denoiser is not None)
        except (NotRunError, NotUnderstoodError) as error:
            failures.append(error)
    # What came the furthest tells the most: an attempt that runs is told of before one that does not.
    told = next((e for e in reversed(failures) if isinstance(e, NotUnderstoodError)), failures[0])
    if isinstance(told, NotRunError):
        raise told
    raise NotUnderstoodError(
        f"{asked.label} calls its {type(module).__name__} in a way that is not understood: {told}; {_ADVICE}"
    )


def capture_rows(
    pipeline: Any,
    prompts: Sequence[str] | int,
    learnt: Captured,
    *,
    rows: Mapping[str, Sequence[Any]] | None = None,
    steps: int = 1,
    guided: bool | float = False,
    seed: int = 0,
    batch: int = BATCH,
) -> LatentData:
    """Conditioning for many prompts, as the pipeline gives it to its denoiser, and the latents that it arrives at.

    Texts of different lengths are padded as the pipeline pads those of one batch: every batch is run with the longest prompts of
    all beside its own, so that its masks, if it has any, tell the padding.

    Args:
        pipeline: the one that `learnt` was learnt from, or of its family.
        prompts: a row each; of a pipeline that takes none, the number of rows. learnt (`Captured`): how it is called.
        rows: as in `learn`.
        steps (`int`, defaults to 1): of sampling. 1: conditioning alone, the latents are no pictures.
        guided (`bool | float`, defaults to False): latents are sampled with the pipeline's own guidance, or with this scale, in a
            second run. Conditioning is that of the unguided call always.
        seed (`int`, defaults to 0): of the pipeline's noise. batch (`int`, defaults to 16): prompts of one run.
    Returns:
        `LatentData` with a row for each prompt and the call; tensors that all rows share are those of these prompts.
    Raises:
        DataError: prompts or parts are missing, the pipeline does not run or is another, or rows have no common shape.
    Warns when prompts are longer than the pipeline reads.
    """
    if steps < 1 or batch < 1 or seed < 0:
        raise DataError(f"steps and batch must be at least 1, seed at least 0, got {steps}, {batch} and {seed}.")
    _, module = named_denoiser(pipeline, learnt.denoiser)
    learnt.call.check_fits(module)
    given = None if isinstance(prompts, int) else check_prompts(pipeline, prompts, learnt.options)
    total = prompts if isinstance(prompts, int) else len(prompts)
    if given is None and (takes_prompts(pipeline) or total < 1):
        raise DataError(
            f"{type(pipeline).__name__} takes {'prompts' if total > 0 else 'one row at least'}, got {total}."
        )
    options = {name: value for name, value in learnt.options.items() if name not in learnt.off}
    asked = Request(pipeline, module, given, dict(rows or {}), options, learnt.off)
    check_options(pipeline, options, asked.rows, total)
    makes = (steps, guided, seed)
    batches = [list(range(start, min(start + batch, total))) for start in range(0, total, batch)]
    try:
        parts = _captured(asked, learnt, batches, [], makes)
    except NotUnderstoodError:
        if given is None:
            raise
        parts = []
    if given is not None and (not parts or _differ(parts)):
        # With the longest texts of all and a short one in each batch, all are padded alike.
        asked = replace(asked, prompts=[*given, SHORT])
        parts = _captured(asked, learnt, batches, [*longest(pipeline, given), total], makes)
    return _joined(asked, parts)


def _learn_once(asked: Request, name: str, kept: int, seed: int, *, grow: bool) -> Captured:
    total = len(asked.prompts) if asked.prompts is not None else max(ROWS, kept)
    places = list(range(total))
    fewer = fewer_places(asked, places)
    steps = KEPT
    while True:
        few = asked.run(fewer, steps, torch.Generator().manual_seed(seed))
        heard = len(few.steps)
        if heard >= KEPT or 2 * steps > MOST_STEPS or not (heard or grow):
            break
        steps *= 2
    if heard < KEPT:
        raise NotRunError(
            f"{asked.label} called its {name}, a {type(asked.denoiser).__name__}, before {heard} of its scheduler's {steps} steps: "
            f"{KEPT} are needed; {_ADVICE}"
        )
    more = asked.run(places, steps, torch.Generator().manual_seed(seed))
    derived = _derived(asked.denoiser, few, more, (len(fewer), total))
    call, rows = assembled(derived.call, derived.rows)
    if len(more.last) != total:
        raise NotUnderstoodError(f"the scheduler makes {len(more.last)} rows of latents for {total} prompts")
    options = {**asked.options, **asked.off, **({STEPS: steps} if steps > KEPT else {})}
    if has_betas(scheduler_config(asked.pipeline)) and not call.floating:
        call = replace(call, single=False)  # training counts its steps in whole numbers, however the sampler does
    data = LatentData(on_cpu(more.last), rows, call)
    return Captured(data.take(torch.arange(kept)) if kept < total else data, options, derived.replay, name, asked.off)


def _derived(denoiser: nn.Module, few: Heard, more: Heard, counts: tuple[int, int]) -> Derived:
    """As `derive`; a pipeline may tell its denoiser the time that its scheduler rounds."""
    try:
        return derive(denoiser, few.steps, more.steps, counts)
    except NotUnderstoodError:
        one, other = ([step.unrounded() for step in heard.steps] for heard in (few, more))
        with suppress(NotUnderstoodError):
            return derive(denoiser, one, other, counts)
        raise


def _captured(
    asked: Request,
    learnt: Captured,
    batches: Sequence[list[int]],
    beside: Sequence[int],
    makes: tuple[int, bool | float, int],
) -> list[_Part]:
    """A part for each batch, run with the prompts at `beside` behind its own."""
    steps, guided, seed = makes
    generator, parts = torch.Generator().manual_seed(seed), list[_Part]()
    names = [name for name in learnt.data.conditioning if not name.startswith(ROWS_OF)]
    for places in batches:
        alone = steps == 1 or guided is not False
        drawn = torch.Generator().manual_seed(seed) if alone else generator
        # Schedules of one step divide by nothing in some schedulers: the first step of several serves as well.
        heard = asked.run([*places, *beside], KEPT if alone else steps, drawn, until=1 if alone else 0)
        if not heard.steps:
            raise NotRunError(f"{asked.label} never called its {learnt.denoiser}: nothing was captured.")
        try:
            call, rows = rows_like(learnt.call, names, heard.steps[0])
            _check_replay(asked, call, rows, heard) if not parts else None
        except NotUnderstoodError as error:
            raise NotUnderstoodError(
                f"{asked.label} calls its denoiser in another way than was learnt: {error}."
            ) from error
        if guided is not False:
            heard = asked.run_guided(places, steps, generator, None if guided is True else float(guided))
        count = len(places)
        wrong = {
            n: len(v) for n, v in {**rows, "latents": heard.last}.items() if len(v) not in (count, count + len(beside))
        }
        if wrong:
            raise NotUnderstoodError(f"{asked.label} gives its denoiser {wrong} rows for {count} prompts.")
        parts.append(_Part(call, {name: value[:count] for name, value in rows.items()}, on_cpu(heard.last)[:count]))
    return parts


def _check_replay(asked: Request, call: DenoiserCall, rows: Rows, heard: Heard) -> None:
    step, made = heard.steps[0], assembled(call, rows)
    worst = min(replayed(asked.denoiser, *made, each) for each in (step, step.unrounded()))
    if worst > TOLERANCE.get(step.given.dtype, TOLERANCE[torch.float32]):
        raise NotUnderstoodError(f"replaying the call differs by {worst:.1e} from what the scheduler was given")


def _differ(parts: Sequence[_Part]) -> bool:
    """Whether batches cannot be joined as they are: texts of other lengths."""
    first = parts[0]
    for part in parts[1:]:
        if part.call.to_json() != first.call.to_json() or not same(dict(part.call.shared), dict(first.call.shared)):
            return True
        for name, value in part.rows.items():
            if isinstance(value, torch.Tensor) and value.shape[1:] != first.rows[name].shape[1:]:
                return True
    return False


def _joined(asked: Request, parts: Sequence[_Part]) -> LatentData:
    if _differ(parts):
        raise DataError(
            f"{asked.label} conditions its denoiser by other shapes or numbers from batch to batch: pass prompts of one length, or "
            "all in one batch (batch=)."
        )
    rows: Rows = {}
    for name, value in parts[0].rows.items():
        values = [part.rows[name] for part in parts]
        rows[name] = torch.cat(values) if isinstance(value, torch.Tensor) else [row for part in values for row in part]
    try:
        call, made = assembled(parts[0].call, rows)
    except NotUnderstoodError as error:
        raise NotUnderstoodError(f"{asked.label}: {error}.") from error
    return LatentData(torch.cat([part.latents for part in parts]), made, call)
