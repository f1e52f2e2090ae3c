"""How a denoiser is called: `evaluate` is the one place that does.

Families differ in the name of the sample, in how the time argument follows the scheduler's time, in the sign of the prediction, in
what is a list and what has no batch axis. A `DenoiserCall` says all of that as plain data. It is learnt from a pipeline
(`capture`), and a record keeps it, which may come from a stranger: names are those of the denoiser's `forward`, and sizes are bounded.

Source: our choice.
"""

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import DataError
from ..files.text import short


MAX_JSON_BYTES, MAX_DEPTH, MAX_ITEMS, MAX_NUMBER = 2**14, 6, 256, 1e9
ROWS_OF = "rows_of."
"""Prefix of the conditioning that says how many rows of a padded list entry count, `(B,)`."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}(?:\.(?:[A-Za-z_][A-Za-z0-9_]{0,63}|\d{1,2})){0,3}")
_STATES = re.compile(r"(?:block.*samples|residuals|attention_kwargs(?!\.attention_mask$)|skip_layers|controlnet)")
"""Arguments by which a caller reaches into a denoiser's blocks, which no record may do; a mask of the text is a row like others."""


def _plain(value: Any) -> Any:
    """For JSON, which knows no tuples; some denoisers tell them from lists."""
    if isinstance(value, tuple):
        return {"()": [_plain(inner) for inner in value]}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return {name: _plain(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value


def _rich(value: Any) -> Any:
    if isinstance(value, list):
        return [_rich(inner) for inner in value]
    if isinstance(value, dict):
        made = {name: _rich(inner) for name, inner in value.items()}
        return tuple(made["()"]) if set(made) == {"()"} else made
    return value


def _require(good: bool, name: str, value: object) -> None:
    if not good:
        raise DataError(f"the denoiser's call has no valid {name}: {short(value)}.")


def _is_axis(value: object) -> bool:
    return type(value) is int and 0 <= value <= 5


def _is_line(line: object) -> bool:
    return isinstance(line, tuple | list) and len(line) == 2 and all(_is_number(value) for value in line)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= MAX_NUMBER  # type: ignore[arg-type]


def _check_constant(value: object, depth: int = 0) -> None:
    _require(depth <= MAX_DEPTH, "constant", "nested too deep")
    if isinstance(value, Mapping | list | tuple):
        _require(len(value) <= MAX_ITEMS, "constant", f"of {len(value)} entries")
        for inner in value.values() if isinstance(value, Mapping) else value:
            _check_constant(inner, depth + 1)
        return
    right = value is None or isinstance(value, bool) or _is_number(value)
    _require(right or (isinstance(value, str) and len(value) <= MAX_ITEMS), "constant", value)


@dataclass(frozen=True)
class DenoiserCall:
    """Everything about a denoiser's call that is no row of the data. The default is a U-Net's.

    Args:
        sample (`str`): name of the sample's argument, default "": it goes first.
        times (`Mapping[str, tuple[float, float]]`): time arguments, each as scale and offset of a line in the scheduler's time.
        floating (`bool`): times are floating point even where the scheduler counts in integers, default False.
        single (`bool`): floating point times are in single precision, whatever the denoiser's, default False.
        sign (`float`): of the prediction against what the scheduler is given, default 1.
        listed (`tuple[str, ...]`): arguments that are lists with a tensor a row.
        ragged (`tuple[str, ...]`): those of them whose rows are padded here to one length; conditioning `rows_of.NAME` has it.
        unit_axis (`int`, *optional*): axis of length 1 that the sample has for the denoiser and not for the scheduler.
        axes (`Mapping[str, int]`): axis of the rows of conditioning where it is not the first.
        beside (`tuple[str, int]`, *optional*): conditioning that is joined to the sample, and along which axis.
        shared (`Mapping[str, torch.Tensor]`): tensors without a batch axis, by dotted name.
        fixed (`Mapping[str, Any]`): keywords that are no tensors.
        each (`Mapping[str, Any]`): keywords that are lists with this same entry for every row.
    Raises:
        DataError: a name that no argument can have or that reaches into blocks, a number that is none, or too much of something.
    """

    sample: str = ""
    times: Mapping[str, tuple[float, float]] = field(default_factory=lambda: {"timestep": (1.0, 0.0)})
    floating: bool = False
    single: bool = False
    sign: float = 1.0
    listed: tuple[str, ...] = ()
    ragged: tuple[str, ...] = ()
    unit_axis: int | None = None
    axes: Mapping[str, int] = field(default_factory=dict)
    beside: tuple[str, int] | None = None
    shared: Mapping[str, torch.Tensor] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    each: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.sign in (1.0, -1.0), "sign", self.sign)
        _require(isinstance(self.floating, bool), "floating", self.floating)
        _require(isinstance(self.single, bool), "single", self.single)
        _require(self.unit_axis is None or _is_axis(self.unit_axis), "unit_axis", self.unit_axis)
        _require(all(_is_axis(axis) for axis in self.axes.values()), "axes", self.axes)
        _require(self.beside is None or (len(self.beside) == 2 and _is_axis(self.beside[1])), "beside", self.beside)
        right = len(self.times) > 0 and all(_is_line(line) for line in self.times.values())
        _require(right, "times", self.times)
        for value in (*self.fixed.values(), *self.each.values()):
            _check_constant(value)
        names = self.names()
        _require(len(names) <= MAX_ITEMS, "arguments", len(names))
        for name in names:
            _require(_NAME.fullmatch(name) is not None and not _STATES.search(name), "argument", name)

    def names(self) -> list[str]:
        """Every argument that is named here, dotted."""
        joined = [self.beside[0]] if self.beside is not None else []
        plain = [*self.times, *self.listed, *self.ragged, *self.axes, *self.shared, *self.fixed, *self.each, *joined]
        return [*plain, self.sample] if self.sample else plain

    def check_fits(self, denoiser: nn.Module) -> None:
        """Raises DataError when `denoiser`'s `forward` has no argument of a name used here."""
        known = inspect.signature(denoiser.forward).parameters
        if any(p.kind is p.VAR_KEYWORD for p in known.values()):
            return
        joined = () if self.beside is None else (self.beside[0],)
        unknown = sorted({name.partition(".")[0] for name in self.names() if name not in joined} - known.keys())
        if unknown:
            raise DataError(
                f"{type(denoiser).__name__} takes no argument {', '.join(map(short, unknown))}: the data were captured from a "
                "pipeline of another family."
            )

    def to_json(self) -> str:
        """Everything but the shared tensors, in one line."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "shared"}
        if not self.single:  # as files were written before there was such a field
            kept.pop("single")
        return json.dumps({name: _plain(value) for name, value in kept.items()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, shared: Mapping[str, torch.Tensor]) -> "DenoiserCall":
        """What `to_json` wrote.

        Raises:
            DataError: it is something else, or as the class.
        """
        if len(text) > MAX_JSON_BYTES:
            raise DataError(f"the denoiser's call takes {len(text)} bytes, at most {MAX_JSON_BYTES} are read.")
        try:
            return cls(**{name: _rich(value) for name, value in json.loads(text).items()}, shared=shared)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise DataError(f"the denoiser's call cannot be read ({short(str(error))}).") from error


UNET_CALL = DenoiserCall()
"""A U-Net's: sample first, `timestep` in the scheduler's own time."""


class Keywords(dict[str, Any]):
    """Conditioning by flat dotted names, a `(B, ...)` tensor each, with the call that it belongs to.

    Attributes:
        call (`DenoiserCall`): of the denoiser that they are for.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, call: DenoiserCall = UNET_CALL) -> None:
        super().__init__(values or {})
        self.call = call

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Keywords":
        """The same with `change` done to each tensor."""
        return Keywords({name: change(value) for name, value in self.items()}, self.call)

    def with_values(self, values: Mapping[str, Any]) -> "Keywords":
        """The same with these in place of its own."""
        return Keywords({**self, **values}, self.call)


class CallInputs(NamedTuple):
    """What a denoiser is called with, where it is and in its dtype.

    Attributes:
        sample (`torch.Tensor`): noised latents, `(B, ...)`.
        level (`torch.Tensor`): the scheduler's time, `(B,)`.
        conditioning (`Keywords`): tensors, `(B, ...)` each.
    """

    sample: torch.Tensor
    level: torch.Tensor
    conditioning: Keywords


def evaluate(
    denoiser: nn.Module, sample: torch.Tensor, level: torch.Tensor, keywords: Mapping[str, Any]
) -> torch.Tensor:
    """The prediction for `sample` `(B, ...)` at the scheduler's time `level` `(B,)`.

    Args:
        denoiser: wrapped or not. keywords: `Keywords`; plain mappings count as a U-Net's.
    """
    call = keywords.call if isinstance(keywords, Keywords) else UNET_CALL
    given: dict[str, Any] = dict(keywords)
    if call == UNET_CALL:
        return first_output(denoiser(sample, timestep=level, **nest(given)))
    for name, value in call.shared.items():
        # Half precision follows the denoiser's; float32 tables of positions stay what they are.
        half = value.dtype in (torch.float16, torch.bfloat16)
        given[name] = value.to(sample.device, sample.dtype if half else value.dtype)
    for name, axis in call.axes.items():
        given[name] = given[name].movedim(0, axis)
    if call.beside is not None:
        sample = torch.cat([sample, given.pop(call.beside[0])], call.beside[1])
    if call.unit_axis is not None:
        sample = sample.unsqueeze(call.unit_axis)
    real = torch.float32 if call.single else sample.dtype
    for name, line in call.times.items():
        given[name] = _time(level, line, real if call.floating or level.is_floating_point() else None)
    if call.sample:
        given[call.sample] = sample
    lengths = {name: given.pop(f"{ROWS_OF}{name}").tolist() for name in call.ragged}
    for name in call.listed:
        rows = given[name].unbind(0)
        counts = lengths.get(name)
        given[name] = list(rows) if counts is None else [row[:count] for row, count in zip(rows, counts, strict=True)]
    given |= {**call.fixed, **{name: [value] * len(sample) for name, value in call.each.items()}}
    predicted = first_output(denoiser(*(() if call.sample else (sample,)), **nest(given)))
    if call.unit_axis is not None and predicted.ndim == sample.ndim:
        predicted = predicted.squeeze(call.unit_axis)
    return predicted if call.sign == 1.0 else call.sign * predicted


def prediction(
    denoiser: nn.Module, noised: torch.Tensor, level: torch.Tensor, conditioning: Mapping[str, Any]
) -> torch.Tensor:
    """What a denoiser predicts of `noised` `(B, C, ...)`, in that shape: without the variances that some models add."""
    return evaluate(denoiser, noised, level, conditioning)[:, : noised.shape[1]]


def first_output(value: Any) -> torch.Tensor:
    """A denoiser's prediction, whatever it is wrapped in."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, list) and all(isinstance(row, torch.Tensor) for row in value):
        return torch.stack(value)
    return first_output(value.sample if hasattr(value, "sample") else value[0])


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested dictionaries; where the inner names are numbers, as tuples."""
    result: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        inner = result
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return {name: _with_tuples(value) for name, value in result.items()}


def _with_tuples(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    made = {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(made[str(i)] for i in range(len(made))) if made and all(n.isdigit() for n in made) else made


def _time(level: torch.Tensor, line: tuple[float, float], dtype: torch.dtype | None) -> torch.Tensor:
    scale, offset = line
    # Pipelines divide by a thousand; a product with .001 would differ in the last digit, which blocks multiply.
    whole = round(1 / scale) if 0 < abs(scale) < 1 else 0
    if (scale, offset) == (1.0, 0.0):
        time = level
    elif whole and abs(scale * whole - 1) < 1e-6:
        time = (level + offset * whole) / whole
    else:
        time = level * scale + offset
    return time if dtype is None else time.to(dtype)
