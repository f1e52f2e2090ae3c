"""Learn from a pipeline how its denoiser is called, whatever its family, and condition prompts as the pipeline does.

The pipeline runs with two numbers of prompts, unguided. What of the denoiser's call follows the number is a row, what is equal is
shared; the scheduler says which argument is the sample, how times follow its own, and with which sign a prediction is used. A
call counts only if `evaluate` with it gives again what the scheduler was given, at each of three steps.

Source: our choice.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import DataError
from ..files.text import short
from .call import ROWS_OF, DenoiserCall
from .derivation import TOLERANCE, Derived, Rows, assembled, derive, on_cpu, replayed, rows_like, same
from .inputs import LatentData
from .recording import KEPT, Heard, NotRunError, NotUnderstoodError, record, without_guiders
from .schedule import noise_schedule
from .setup import denoiser_of
from .sites import unwrap
from .tokens import check_encoders, count_tokens, longest, tokenizers, warn_of_cuts


ROWS, BATCH = 3, 16
MOST_STEPS = 24
"""Of a run that waits for a denoiser which has but a part of the schedule."""
PROMPTS = ("a photograph of a lake", "a drawing of two old houses", "a red lamp on a table")
"""For a pipeline of which only the call is to be learnt."""
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
    """

    data: LatentData
    options: Mapping[str, Any]
    replay: float
    denoiser: str

    @property
    def call(self) -> DenoiserCall:
        """How the denoiser is called."""
        return self.data.call


@dataclass(frozen=True)
class _Asked:
    """A pipeline with all that it may be asked for."""

    pipeline: Any
    denoiser: nn.Module
    prompts: Sequence[str] | None
    rows: Mapping[str, Sequence[Any]]
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        return type(self.pipeline).__name__

    def run(self, places: Sequence[int], steps: int, generator: torch.Generator, guided: bool = False) -> Heard:
        """Run it for the prompts, or rows, at `places`."""
        known = _parameters(self.pipeline)
        count: dict[str, Any] = {"batch_size": len(places)} if "batch_size" in known else {}
        if self.prompts is not None:
            count = {"prompt": [self.prompts[i] for i in places]}
        given: dict[str, Any] = {"num_inference_steps": steps, "output_type": "latent", "generator": generator}
        given = {name: value for name, value in given.items() if name in known}
        given |= {**count, **self.options, **{n: _pick(value, places) for n, value in self.rows.items()}}
        # Whoever asks for more steps than a denoiser needs to be reached gets them.
        if "num_inference_steps" in self.options:
            given["num_inference_steps"] = max(steps, self.options["num_inference_steps"])
        if guided:
            return record(self.pipeline, self.denoiser, given, guided=True)
        with without_guiders(self.pipeline):
            return record(self.pipeline, self.denoiser, given)


class _Part(NamedTuple):
    """A batch of rows, with the call that it came with."""

    call: DenoiserCall
    rows: Rows
    latents: torch.Tensor


def scheduler_config(pipeline: Any) -> dict[str, Any]:
    """The config of a pipeline's scheduler with the name of its class, which those built in memory do not tell."""
    return {"_class_name": type(pipeline.scheduler).__name__, **pipeline.scheduler.config}


def named_denoiser(pipeline: Any, name: str | None = None) -> tuple[str, nn.Module]:
    """The denoiser of a pipeline, or the part of this name, with its name.

    Raises:
        DataError: no pipeline with denoiser and scheduler, or it has no such part.
    """
    found = denoiser_of(pipeline) if name is None else getattr(pipeline, name, None)
    parts = getattr(pipeline, "components", {})
    if getattr(pipeline, "scheduler", None) is None or (name is None and (found is None or found is pipeline)):
        raise DataError(
            f"{type(pipeline).__name__} has no denoiser that a scheduler drives: pass a pipeline of diffusers' with a unet or a "
            "transformer, or name the denoiser (denoiser=)."
        )
    if not isinstance(found, nn.Module):
        modules = [part for part, value in parts.items() if isinstance(value, nn.Module)]
        raise DataError(f"{type(pipeline).__name__} has no denoiser {short(name)}: its modules are {modules}.")
    return name or next(part for part, value in parts.items() if value is found), unwrap(found)


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
    asked, kept = _ask(pipeline, module, prompts, rows or {}, dict(options or {}))
    failures: list[DataError] = []
    for off in _attempts(pipeline, asked.options):
        attempt = replace(asked, options={**off, **asked.options})
        try:
            return _learn_once(attempt, name, kept, seed, grow=denoiser is not None)
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
        steps (`int`, defaults to 1): of sampling: latents of one step are no pictures.
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
    given = _check_prompts(pipeline, prompts) if not isinstance(prompts, int) else None
    total = len(given) if given is not None else int(prompts)  # type: ignore[arg-type]
    if given is None and (_takes_prompts(pipeline) or total < 1):
        raise DataError(
            f"{type(pipeline).__name__} takes {'prompts' if total > 0 else 'at least one row'}, got {total}."
        )
    asked = _Asked(pipeline, module, given, dict(rows or {}), learnt.options)
    if given is not None:
        warn_of_cuts(pipeline, given, learnt.options)
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


def _parameters(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipeline).__call__).parameters


def _takes_prompts(pipeline: Any) -> bool:
    return "prompt" in _parameters(pipeline)


def _pick(value: Sequence[Any], places: Sequence[int]) -> Any:
    places = [min(place, len(value) - 1) for place in places]
    return value[places] if hasattr(value, "shape") else [value[i] for i in places]  # type: ignore[call-overload]


def _check_prompts(pipeline: Any, prompts: Sequence[str]) -> list[str]:
    label = type(pipeline).__name__
    if not _takes_prompts(pipeline):
        raise DataError(f"{label} takes no prompts: leave prompts= (--prompts) out.")
    found = [prompts] if isinstance(prompts, str) else list(prompts)
    if not found or not all(isinstance(prompt, str) for prompt in found):
        raise DataError(f"no prompts: {label} takes a list of texts, got {short(found)}.")
    check_encoders(pipeline)
    return found


def _ask(
    pipeline: Any,
    denoiser: nn.Module,
    prompts: Sequence[str] | None,
    rows: Mapping[str, Sequence[Any]],
    options: dict[str, Any],
) -> tuple[_Asked, int]:
    """What the pipeline is asked for, at least `ROWS` rows of it, and how many of them the caller gets."""
    known = _parameters(pipeline)
    unknown = sorted({*options, *rows} - known.keys())
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        raise DataError(f"{type(pipeline).__name__} takes no option {', '.join(unknown)}.")
    lengths = {len(value) for value in rows.values()}
    if len(lengths) > 1:
        raise DataError(f"rows= gives {sorted(lengths)} entries: each option needs one for each prompt.")
    if prompts is None and not _takes_prompts(pipeline):
        count = next(iter(lengths), ROWS)
        asked = _Asked(pipeline, denoiser, None, rows, options)
    else:
        given = _check_prompts(pipeline, PROMPTS if prompts is None else prompts)
        whole = [*given, *PROMPTS][: max(ROWS, len(given))]
        warn_of_cuts(pipeline, whole, options)
        count = len(given)
        asked = _Asked(pipeline, denoiser, whole, rows, options)
    if rows and (next(iter(lengths)) < ROWS or (asked.prompts is not None and len(asked.prompts) not in lengths)):
        raise DataError(f"rows= gives {sorted(lengths)} entries: at least {ROWS} are needed, as many as prompts.")
    return asked, count


def _attempts(pipeline: Any, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Options that switch guidance off: first none, for distilled models take a scale as one argument of one call."""
    scales = [
        name
        for name, parameter in _parameters(pipeline).items()
        # One without a value follows another.
        if ("guidance_scale" in name or "cfg_scale" in name) and name not in options and parameter.default is not None
    ]
    yield {}
    for value in (1.0, 0.0) if scales else ():
        yield dict.fromkeys(scales, value)


def _learn_once(asked: _Asked, name: str, kept: int, seed: int, *, grow: bool) -> Captured:
    total = len(asked.prompts) if asked.prompts is not None else max(ROWS, kept)
    places = list(range(total))
    fewer = _fewer(asked, places)
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
    options = {**asked.options, **({"num_inference_steps": steps} if steps > KEPT else {})}
    data = LatentData(on_cpu(more.last), rows, call)
    return Captured(data.take(torch.arange(kept)) if kept < total else data, options, derived.replay, name)


def _fewer(asked: _Asked, places: list[int]) -> list[int]:
    """All places but one, with the longest prompt and the shortest, so that both runs pad alike, and both do or neither."""
    if asked.prompts is None:
        return places[:-1]
    counts = [count_tokens(tokenizer, asked.prompts) for tokenizer in tokenizers(asked.pipeline).values()]
    lengths = [*zip(*counts, map(len, asked.prompts), strict=True)]
    middle = sorted(places, key=lengths.__getitem__)[1]
    return [place for place in places if place != middle]


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
    asked: _Asked,
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
        drawn = torch.Generator().manual_seed(seed) if guided else generator
        heard = asked.run([*places, *beside], 1 if guided else steps, drawn)
        if not heard.steps:
            raise NotRunError(f"{asked.label} never called its {learnt.denoiser}: nothing was captured.")
        try:
            call, rows = rows_like(learnt.call, names, heard.steps[0])
            _check_replay(asked, call, rows, heard) if not parts else None
        except NotUnderstoodError as error:
            raise NotUnderstoodError(
                f"{asked.label} calls its denoiser in another way than was learnt: {error}."
            ) from error
        if guided:
            heard = replace(asked, options=_guided(asked, guided)).run(places, steps, generator, guided=True)
        count = len(places)
        wrong = {
            n: len(v) for n, v in {**rows, "latents": heard.last}.items() if len(v) not in (count, count + len(beside))
        }
        if wrong:
            raise NotUnderstoodError(f"{asked.label} gives its denoiser {wrong} rows for {count} prompts.")
        parts.append(_Part(call, {name: value[:count] for name, value in rows.items()}, on_cpu(heard.last)[:count]))
    return parts


def _check_replay(asked: _Asked, call: DenoiserCall, rows: Rows, heard: Heard) -> None:
    step, made = heard.steps[0], assembled(call, rows)
    worst = min(replayed(asked.denoiser, *made, each) for each in (step, step.unrounded()))
    if worst > TOLERANCE.get(step.given.dtype, TOLERANCE[torch.float32]):
        raise NotUnderstoodError(f"replaying the call differs by {worst:.1e} from what the scheduler was given")


def _guided(asked: _Asked, guided: bool | float) -> dict[str, Any]:
    """Options of a guided run: the pipeline's own scales in place of those that switch guidance off."""
    kept = {n: v for n, v in asked.options.items() if "guidance_scale" not in n and "cfg_scale" not in n}
    known = "guidance_scale" in _parameters(asked.pipeline)
    return {**kept, "guidance_scale": float(guided)} if known and not isinstance(guided, bool) else kept


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


def _joined(asked: _Asked, parts: Sequence[_Part]) -> LatentData:
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
