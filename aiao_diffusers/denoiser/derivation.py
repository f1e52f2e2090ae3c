"""A denoiser's call derived from two runs of its pipeline, of other numbers of rows: what follows the number is a row.

Source: our choice.
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import DataError
from .call import DenoiserCall, Keywords, evaluate
from .recording import RTOL, NotUnderstoodError, Step, sign_of
from .rows import BESIDE, Rows, assembled, on_cpu, same


TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of a replayed prediction's largest difference, over the largest prediction; half precision rounds times."""
ROUNDING: Mapping[torch.dtype | None, float] = {torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""How far a time argument may be from a line, of its largest value; others than these have seven digits."""
LINES = ((1.0, 0.0), (1e-3, 0.0), (-1e-3, 1.0), (-1.0, 1e3))
"""Scale and offset of most families' times: tried first, for a line through rounded values is no round one."""


class Derived(NamedTuple):
    """What two runs tell.

    Attributes:
        call (`DenoiserCall`): without `ragged`, which the rows decide. rows (`Rows`): of the larger run.
        replay (`float`): largest relative difference of a replayed prediction.
    """

    call: DenoiserCall
    rows: Rows
    replay: float


@dataclass
class _Sorting:
    """The arguments of a call: which follow the number of rows, from `few` to `more`, and which all rows share."""

    few: int
    more: int
    rows: Rows = field(default_factory=dict)
    axes: dict[str, int] = field(default_factory=dict)
    listed: list[str] = field(default_factory=list)
    shared: dict[str, torch.Tensor] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    each: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, old: Any, new: Any) -> None:
        if isinstance(new, torch.Tensor):
            self._add_tensor(name, old, new)
        elif isinstance(new, Mapping) and new:
            for key, value in new.items():
                self.add(f"{name}.{key}", old.get(key) if isinstance(old, Mapping) else None, value)
        elif isinstance(new, list | tuple) and len(new) == self.more and _length(old) == self.few:
            self._add_list(name, new)
        elif isinstance(new, list | tuple) and _holds_tensor(new):
            if _length(old) != len(new):
                raise NotUnderstoodError(f"'{name}' has another length from run to run, and not by rows")
            for number, (before, value) in enumerate(zip(old, new, strict=True)):
                self.add(f"{name}.{number}", before, value)
        elif old != new:
            raise NotUnderstoodError(f"'{name}' is {old!r} in one run and {new!r} in the next")
        else:
            self.fixed[name] = new

    def _add_tensor(self, name: str, old: Any, new: torch.Tensor) -> None:
        if not isinstance(old, torch.Tensor) or old.ndim != new.ndim:
            raise NotUnderstoodError(f"'{name}' is of another kind from run to run")
        axes = [axis for axis in range(new.ndim) if (old.shape[axis], new.shape[axis]) == (self.few, self.more)]
        if axes:
            self.rows[name] = new.movedim(axes[0], 0)
            if axes[0]:
                self.axes[name] = axes[0]
        elif old.shape == new.shape and torch.equal(old, new):
            self.shared[name] = new
        elif new.ndim and len(new) == self.more * (len(new) // self.more) != len(old):
            raise NotUnderstoodError(f"'{name}' has {len(new)} rows for {self.more} prompts: guidance doubles them")
        else:
            raise NotUnderstoodError(f"'{name}' differs from run to run, and not by rows")

    def _add_list(self, name: str, new: Sequence[Any]) -> None:
        if all(isinstance(value, torch.Tensor) for value in new):
            self.rows[name] = list(new)
            self.listed.append(name)
        elif _holds_tensor(new):
            raise NotUnderstoodError(f"'{name}' is a list of several tensors a row")
        elif all(value == new[0] for value in new):
            self.each[name] = new[0]
        else:
            raise NotUnderstoodError(f"'{name}' is a list of rows that are no tensors and differ")


def derive(denoiser: nn.Module, few: Sequence[Step], more: Sequence[Step], counts: tuple[int, int]) -> Derived:
    """The call that `more` shows, of which `few` is a run with fewer rows, and how well it replays.

    Args:
        denoiser: the module that both ran. few, more: their steps, three of `more` at least. counts: rows of each.
    Raises:
        NotUnderstoodError: no `DenoiserCall` says it or may say it, or replaying it gives other predictions.
    """
    calls = [step.used for step in more]
    first, before = calls[0], few[0].used
    if len(more) < 3 or any(call is None for call in calls) or first is None or before is None:
        raise NotUnderstoodError(f"{len(more)} steps were heard, three are needed")
    used = [call.arguments for call in calls if call is not None]
    dropped = set(_dropped(denoiser, used[0]))
    times = _times(used, more)
    name, sample = _sample_of(used, more, counts[1])
    beside = _beside_axis(sample.unit(sample.value), more[0].sample)
    sorting = _Sorting(*counts)
    for argument, value in used[0].items():
        if argument not in dropped and argument not in times and argument != name:
            sorting.add(argument, before.arguments.get(argument), value)
    if beside is not None:
        width = more[0].sample.shape[beside]
        whole = sample.unit(sample.value)
        sorting.rows[BESIDE] = whole.narrow(beside, width, whole.shape[beside] - width)
    if sample.listed:
        sorting.listed.append(name)
    told = used[0][next(iter(times))]
    real = isinstance(told, float) or (isinstance(told, torch.Tensor) and told.is_floating_point())
    fields: dict[str, Any] = dict(
        sample="" if name == _first_argument(denoiser) and not sample.listed else name,
        times=times,
        single=_dtype(told) == torch.float32 and sample.value.dtype in ROUNDING,
        floating=real and not torch.as_tensor(more[0].time).is_floating_point(),
        sign=sign_of(first.predicted, more[0].given),
        listed=tuple(sorting.listed),
        unit_axis=sample.axis,
        axes=sorting.axes,
        beside=None if beside is None else (BESIDE, beside),
        shared={key: value.cpu() for key, value in sorting.shared.items()},
        fixed=sorting.fixed,
        each=sorting.each,
    )
    try:
        call = DenoiserCall(**fields)
    except DataError as error:
        raise NotUnderstoodError(str(error).rstrip(".")) from error
    rows = {key: on_cpu(value) for key, value in sorting.rows.items()}
    return Derived(call, rows, _replayed(denoiser, used, more, (call, rows), (name, sample)))


def replayed(denoiser: nn.Module, call: DenoiserCall, rows: Mapping[str, torch.Tensor], step: Step) -> float:
    """Largest difference of the prediction that `evaluate` makes from what `step` gave the scheduler, over the largest of that.

    Raises:
        NotUnderstoodError: of another shape.
    """
    given = step.used
    if given is None:
        raise NotUnderstoodError("guidance mixes predictions, or the pipeline alters them")
    name = call.sample or next(iter(given.arguments))
    value = given.arguments[name]
    value = torch.stack(list(value)) if isinstance(value, list | tuple) else value
    value = value if call.unit_axis is None else value.squeeze(call.unit_axis)
    if call.beside is not None:
        value = value.narrow(call.beside[1], 0, step.sample.shape[call.beside[1]])
    level = _level(call, given.arguments, step).to(value.device).expand(len(value))
    keywords = Keywords(rows, call).map(
        lambda row: row.to(value.device, value.dtype if row.is_floating_point() else row.dtype)
    )
    with torch.no_grad():
        again = evaluate(denoiser, value, level, keywords)
    wanted = step.given
    again = again[:, : wanted.shape[1]] if again.ndim == wanted.ndim else again
    if again.shape != wanted.shape:
        raise NotUnderstoodError(f"replaying gives {tuple(again.shape)}, the scheduler got {tuple(wanted.shape)}")
    largest = wanted.float().abs().max().clamp(min=1e-12)
    worst = float((again.float() - wanted.float()).abs().max() / largest)
    return worst if math.isfinite(worst) else math.inf


def _level(call: DenoiserCall, arguments: Mapping[str, Any], step: Step) -> torch.Tensor:
    """The scheduler's time, `(1,)`; where it was told in half precision, the one that this means: rounding is no other call."""
    name, (scale, offset) = next(iter(call.times.items()))
    told = _number(arguments.get(name))
    if told is None or _dtype(arguments[name]) not in ROUNDING:
        return torch.as_tensor(step.time).reshape(-1)[:1]
    return torch.tensor([(told - offset) / scale])


class _Sample(NamedTuple):
    """The argument that is the sample: as it was given, whether as a list, and the axis of one that the scheduler has not."""

    value: torch.Tensor
    listed: bool
    axis: int | None

    def unit(self, value: torch.Tensor) -> torch.Tensor:
        return value if self.axis is None else value.squeeze(self.axis)


def _replayed(
    denoiser: nn.Module,
    used: Sequence[Mapping[str, Any]],
    steps: Sequence[Step],
    made: tuple[DenoiserCall, Rows],
    sample: tuple[str, _Sample],
) -> float:
    call, rows = assembled(*made)
    try:
        worst = max(replayed(denoiser, call, rows, step) for step in steps)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise NotUnderstoodError(f"replaying the call fails ({error!r})") from error
    if worst > TOLERANCE.get(steps[0].given.dtype, TOLERANCE[torch.float32]):
        moving = [
            f"'{name}'"
            for name in used[0]
            if name != sample[0] and name not in call.times and not same(used[0][name], used[1].get(name))
        ]
        reason = f": {', '.join(moving)} changes from step to step" if moving else ""
        raise NotUnderstoodError(
            f"replaying the call differs by {worst:.1e} from what the scheduler was given{reason}"
        )
    return worst


def _dropped(denoiser: nn.Module, arguments: Mapping[str, Any]) -> Iterator[str]:
    """Arguments that say nothing: absent ones would be the same, or they say how the prediction is wrapped.

    Objects (an empty cache) are left out too: whether they said something is seen by replaying the call.
    """
    known = inspect.signature(denoiser.forward).parameters
    for name, value in arguments.items():
        default = known[name].default if name in known else None
        usual = type(value) is type(default) and not isinstance(value, torch.Tensor) and value == default
        empty = isinstance(value, Mapping) and not value and default is not inspect.Parameter.empty
        if name == "return_dict" or usual or empty or not _is_plain(value):
            yield name


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, torch.Tensor | bool | int | float | str)


def _first_argument(denoiser: nn.Module) -> str:
    return next(iter(inspect.signature(denoiser.forward).parameters))


def _times(used: Sequence[Mapping[str, Any]], steps: Sequence[Step]) -> dict[str, tuple[float, float]]:
    """Arguments that are lines in the scheduler's time, each as scale and offset."""
    levels = [float(torch.as_tensor(step.time).flatten()[0]) for step in steps]
    found = {}
    for name in used[0]:
        values = [_number(arguments.get(name)) for arguments in used]
        told = [value for value in values if value is not None]
        if len(told) < len(values) or len(set(told)) < 2 or levels[0] == levels[-1]:
            continue
        rounding = max(ROUNDING.get(_dtype(arguments.get(name)), 1e-5) for arguments in used)
        line = next((line for line in LINES if _fits(line, levels, told, rounding)), None)
        line = line or _line_through(levels, told, rounding)
        if not _fits(line, levels, told, rounding):
            raise NotUnderstoodError(f"'{name}' is no line in the scheduler's time: {told} at {levels}")
        found[name] = line
    if not found:
        raise NotUnderstoodError("no argument follows the scheduler's time")
    return found


def _fits(line: tuple[float, float], levels: Sequence[float], told: Sequence[float], rounding: float) -> bool:
    scale, offset = line
    size = max(map(abs, [*told, *(scale * level for level in levels)]))
    return all(abs(scale * level + offset - v) <= rounding * size for level, v in zip(levels, told, strict=True))


def _line_through(levels: Sequence[float], told: Sequence[float], rounding: float) -> tuple[float, float]:
    scale = _nice((told[-1] - told[0]) / (levels[-1] - levels[0]), rounding)
    size = max(map(abs, [*told, *(scale * level for level in levels)]))
    return scale, _nice(told[0] - scale * levels[0], rounding, size)


def _nice(value: float, rounding: float, size: float = 0.0) -> float:
    """The round number that `value` is but for rounding; `size`: of the numbers that it is a difference of."""
    if abs(value) <= rounding * size:
        return 0.0
    rounded = float(f"{value:.1g}")
    return rounded if abs(value - rounded) <= rounding * max(abs(value), size) else float(f"{value:.9g}")


def _dtype(value: Any) -> torch.dtype | None:
    first = value[0] if isinstance(value, list | tuple) and value else value
    return first.dtype if isinstance(first, torch.Tensor) else None


def _number(value: Any) -> float | None:
    """The one number that a time argument says to all rows."""
    if isinstance(value, list | tuple) and value and all(isinstance(row, torch.Tensor) for row in value):
        value = torch.stack(list(value)) if len({row.shape for row in value}) == 1 else None
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, torch.Tensor) and value.numel() and value.dtype != torch.bool:
        flat = value.flatten()
        return float(flat[0]) if bool((flat == flat[0]).all()) else None
    return None


def _sample_of(used: Sequence[Mapping[str, Any]], steps: Sequence[Step], count: int) -> tuple[str, _Sample]:
    """The argument that is the scheduler's sample: as it is, scaled but moving with the steps, or with more beside it."""
    wanted = steps[0].sample
    found: list[tuple[int, str, _Sample]] = []
    for name, given in used[0].items():
        listed = isinstance(given, list | tuple) and len(given) == count
        listed = listed and all(isinstance(row, torch.Tensor) and row.shape == given[0].shape for row in given)
        value = torch.stack(list(given)) if listed else given
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        for axis in (None, *(axis for axis in range(1, value.ndim) if value.shape[axis] == 1)):
            sample = _Sample(value, listed, axis)
            plain = sample.unit(value)
            wider = _beside_axis(plain, wanted)
            if plain.shape == wanted.shape:
                moves = not same(given, used[1].get(name))
                found.append((0 if _close(plain, wanted) else 2 if moves else 3, name, sample))
            elif wider is not None and _close(plain.narrow(wider, 0, wanted.shape[wider]), wanted):
                found.append((1, name, sample))
    if not found:
        raise NotUnderstoodError(f"no argument looks like the scheduler's sample {tuple(wanted.shape)}")
    _, name, sample = min(found, key=lambda each: each[0])
    return name, sample


def _beside_axis(value: torch.Tensor, sample: torch.Tensor) -> int | None:
    """The one axis, not the first, along which `value` is longer than `sample`."""
    if value.ndim != sample.ndim:
        return None
    axes = [axis for axis in range(value.ndim) if value.shape[axis] != sample.shape[axis]]
    return axes[0] if len(axes) == 1 and axes[0] and value.shape[axes[0]] > sample.shape[axes[0]] else None


def _close(value: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(value.float(), wanted.to(value.device).float(), rtol=RTOL, atol=1e-4)


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, list | tuple) else None


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensor, value)))
