"""Listen to a pipeline: what it calls its denoiser with, what its scheduler is given for that, and what the scheduler makes of it.

Nothing of the pipeline is changed but for the length of a run: a forward hook on the denoiser, `step` on the scheduler's instance,
the progress bar, guiders and training mode are put back whatever happens.

Source: our choice.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import Any

import torch
from diffusers.utils import logging
from torch import nn

from ..errors import DataError
from ..files.text import short
from .call import first_output
from .setup import eval_mode


KEPT = 3
"""Steps: as many as it takes to see that a time argument is a line in the scheduler's time."""
RTOL, ATOL = 1e-3, 1e-5
"""Between a prediction and what the scheduler was given, to tell which call made it; a replay is held to more."""
_RUNTIME = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What pipelines raise on inputs that they do not take."""


@dataclass(frozen=True)
class Called:
    """One call of a denoiser.

    Args:
        arguments (`Mapping[str, Any]`): by the names of its `forward`.
        predicted (`torch.Tensor`): what it gave.
    """

    arguments: Mapping[str, Any]
    predicted: torch.Tensor


@dataclass
class Step:
    """One step of the scheduler.

    Args:
        calls (`list[Called]`): of the denoiser since the step before.
        given (`torch.Tensor`): the prediction that the scheduler was given.
        time (`Any`): the scheduler's own time. sample (`torch.Tensor`): what it started from.
        exact (`float`, *optional*): that time before it was rounded, where it keeps shares of noise.
    """

    calls: list[Called] = field(default_factory=list)
    given: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    time: Any = None
    sample: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    exact: float | None = None

    def unrounded(self) -> "Step":
        """The same at its exact time, if that is known."""
        return self if self.exact is None else replace(self, time=self.exact)

    @property
    def used(self) -> Called | None:
        """The call whose prediction the scheduler was given; None where it was given something made of several, or altered.

        Of a call on further rows (a pipeline that asks for the empty prompt even where guidance is off) the part that counts.
        """
        parts = (part for call in self.calls for part in _parts(call, len(self.given) if self.given.ndim else 0))
        return next((part for part in parts if sign_of(part.predicted, self.given)), None)


@dataclass
class Heard:
    """What a run was heard to do.

    Args:
        steps (`list[Step]`): the first three before which the denoiser was called. last (`torch.Tensor`): what the last step made.
    """

    steps: list[Step] = field(default_factory=list)
    last: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class NotUnderstoodError(DataError):
    """A run was heard whose denoiser is called in a way that no `DenoiserCall` says."""


class NotRunError(DataError):
    """A pipeline does not run with what it was given, or never calls its denoiser."""


class _Enough(Exception):
    """Ends a run of which nothing more is to be learnt."""


def sign_of(predicted: torch.Tensor, given: torch.Tensor) -> float:
    """1 or -1: how `predicted` was given to the scheduler; 0: it was not. An axis of one and further channels may be gone."""
    found = predicted.float()
    if found.ndim == given.ndim + 1:
        axes = [axis for axis in range(found.ndim) if found.shape[axis] == 1]
        fits = (found.squeeze(axis) for axis in axes if found.squeeze(axis).shape == given.shape)
        found = next(fits, found)
    if found.ndim == given.ndim and found.ndim > 1:
        found = found[:, : given.shape[1]]
    if found.shape != given.shape:
        return 0.0
    wanted = given.float()
    return next((s for s in (1.0, -1.0) if torch.allclose(s * found, wanted, rtol=RTOL, atol=ATOL)), 0.0)


class _Step:
    """In place of a scheduler's `step`, on the instance alone: a copy that the pipeline makes of the scheduler gets its own."""

    def __init__(self, scheduler: Any, follow: Callable[..., None]) -> None:
        self.original, self.follow, self.owner = scheduler.step, follow, scheduler
        self.__signature__ = inspect.signature(scheduler.step)  # pipelines ask what it takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.original(*args, **kwargs)
        bound = self.__signature__.bind(*args, **kwargs).arguments
        self.follow(bound, result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.owner))
        return self.original if copied is None else MethodType(type(self.owner).step, copied)


@contextmanager
def listen(pipeline: Any, denoiser: nn.Module, *, stop_at_mixed: bool, until: int = 0) -> Iterator[Heard]:
    """What is heard of `pipeline`, as it comes, for the length of the block.

    Args:
        stop_at_mixed: end the run at the first step whose prediction is no single call's. until: or after as many steps; 0: never.
    """
    heard, pending = Heard(), list[Called]()
    signature, scheduler = inspect.signature(denoiser.forward), pipeline.scheduler

    def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= arguments.pop(name, {})
        pending.append(Called(_kept(arguments), first_output(result).detach().clone()))

    def follow(bound: Mapping[str, Any], after: torch.Tensor) -> None:
        heard.last = after.detach().clone()
        if not pending:
            return
        given, time, sample = (_kept(bound[name]) for name in ("model_output", "timestep", "sample"))
        step = Step(pending.copy(), given, time, sample, _exact_time(scheduler))
        pending.clear()
        if len(heard.steps) < KEPT:
            heard.steps.append(step)
        if stop_at_mixed and step.used is None:
            raise _Enough(step)
        if len(heard.steps) == until:
            raise _Enough

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(eval_mode(denoiser))
        stack.callback(denoiser.register_forward_hook(called, with_kwargs=True).remove)
        # Cut prompts are told of beforehand, in one warning.
        stack.callback(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity_error()
        bars = dict(getattr(pipeline, "_progress_bar_config", {}))
        stack.callback(setattr, pipeline, "_progress_bar_config", bars)
        pipeline.set_progress_bar_config(disable=True)
        own = scheduler.__dict__.get("step")
        stack.callback(scheduler.__dict__.pop if own is None else scheduler.__dict__.__setitem__, "step", own)
        scheduler.step = _Step(scheduler, follow)
        yield heard


@contextmanager
def without_guiders(pipeline: Any) -> Iterator[bool]:
    """Guidance by guiders off for the length of the block; yields whether there are any."""
    parts = getattr(pipeline, "components", {})
    guiders = [part for part in parts.values() if hasattr(part, "disable") and hasattr(part, "get_state")]
    enabled = [guider for guider in guiders if guider.get_state().get("enabled", True)]
    try:
        for guider in enabled:
            guider.disable()
        yield bool(enabled)
    finally:
        for guider in enabled:
            guider.enable()


def record(
    pipeline: Any, denoiser: nn.Module, given: Mapping[str, Any], *, guided: bool = False, until: int = 0
) -> Heard:
    """Run `pipeline` with `given` and keep its steps.

    Args:
        given: keywords of its call. guided: take steps whose prediction is made of several calls too. until: as `listen`.
    Raises:
        NotRunError: the pipeline fails.
        NotUnderstoodError: a step's prediction is no single call's, unless `guided`.
    """
    with listen(pipeline, denoiser, stop_at_mixed=not guided, until=until) as heard:
        try:
            pipeline(**given)
        except _Enough as reason:
            # What pipelines do at their end: parts that were fetched for this run go back.
            getattr(pipeline, "maybe_free_model_hooks", tuple)()
            if not reason.args:
                return heard
            step: Step = reason.args[0]
            shapes = ", ".join(str(tuple(call.predicted.shape)) for call in step.calls)
            raise NotUnderstoodError(
                f"the scheduler was given {tuple(step.given.shape)}, which is none of the denoiser's predictions ({shapes}): guidance "
                "mixes them, or the pipeline alters them"
            ) from None
        except _RUNTIME as error:
            raise NotRunError(f"{type(pipeline).__name__} does not run: {short(repr(error), 300)}") from error
    return heard


def _exact_time(scheduler: Any) -> float | None:
    """Of the step that was just taken."""
    shares, place = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    if shares is None or type(place) is not int or not 0 < place <= len(shares):
        return None
    return float(shares[place - 1]) * int(scheduler.config.get("num_train_timesteps", 1000))


def _parts(call: Called, rows: int) -> Iterator[Called]:
    """The call itself or, where it has several times `rows`, each `rows` of it."""
    total = len(call.predicted) if call.predicted.ndim else 0
    if not rows or total == rows or total % rows:
        yield call
        return
    for start in range(0, total, rows):
        part = slice(start, start + rows)
        yield Called({n: _narrowed(v, total, part) for n, v in call.arguments.items()}, call.predicted[part])


def _narrowed(value: Any, total: int, part: slice) -> Any:
    if isinstance(value, Mapping):
        return {name: _narrowed(inner, total, part) for name, inner in value.items()}
    if isinstance(value, torch.Tensor):
        return value[part] if value.ndim and len(value) == total else value
    if isinstance(value, list | tuple):
        return value[part] if len(value) == total else type(value)(_narrowed(inner, total, part) for inner in value)
    return value


def _kept(value: Any) -> Any:
    """A copy that later changes in place do not reach."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _kept(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_kept, value)) if isinstance(value, tuple) else [_kept(inner) for inner in value]
    return value
