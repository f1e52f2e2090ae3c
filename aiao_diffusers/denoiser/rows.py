"""Conditioning as a denoiser's calls show it, and as tensors with a row for each prompt.

Source: our choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from .call import ROWS_OF, DenoiserCall
from .recording import NotUnderstoodError, Step


BESIDE = "beside"
"""Conditioning that is joined to the sample: it has no argument of its own."""
Rows = dict[str, Any]
"""Conditioning by dotted names: a tensor `(n, ...)` each, or a list of n tensors whose shapes may differ."""


def rows_like(call: DenoiserCall, names: Sequence[str], step: Step) -> tuple[DenoiserCall, Rows]:
    """A step's rows by `names`, and `call` with what this step shares: tables of positions follow the length of a text.

    Raises:
        NotUnderstoodError: the step is called in another way than `call`.
    """
    used = step.used
    if used is None:
        raise NotUnderstoodError("guidance mixes predictions, or the pipeline alters them")
    arguments = used.arguments
    known = {name.partition(".")[0] for name in (*call.names(), *names)}
    sample = call.sample or next(iter(arguments))
    new = [n for n, value in arguments.items() if isinstance(value, torch.Tensor) and n not in known and n != sample]
    if new:
        raise NotUnderstoodError(f"'{new[0]}' was not there before: learn it from prompts of different lengths")
    try:
        rows = {name: _at(arguments, name) for name in names if name != BESIDE}
        shared = {name: _at(arguments, name).cpu() for name in call.shared}
        fixed = {name: _at(arguments, name) for name in call.fixed}
        each = {name: _at(arguments, name)[0] for name in call.each}
    except (AttributeError, LookupError, TypeError) as error:
        raise NotUnderstoodError(f"an argument that was there before is missing ({error})") from error
    absent = [name for name, value in rows.items() if value is None]
    if absent:  # masks, where nothing is padded
        raise NotUnderstoodError(f"'{absent[0]}' that was there before is missing")
    rows = {name: value.movedim(call.axes[name], 0) if name in call.axes else value for name, value in rows.items()}
    if call.beside is not None:
        whole = arguments[sample]
        width = step.sample.shape[call.beside[1]]
        rows[BESIDE] = whole.narrow(call.beside[1], width, whole.shape[call.beside[1]] - width)
    return replace(call, shared=shared, fixed=fixed, each=each), {key: on_cpu(value) for key, value in rows.items()}


def assembled(call: DenoiserCall, rows: Rows) -> tuple[DenoiserCall, dict[str, torch.Tensor]]:
    """Rows as tensors: lists are stacked or, where their lengths differ, padded to one, with `rows_of.NAME` beside them.

    Raises:
        NotUnderstoodError: tensors of a list differ in more than their length.
    """
    made: dict[str, torch.Tensor] = {}
    ragged = []
    for name, value in rows.items():
        if isinstance(value, torch.Tensor):
            made[name] = value
        elif len({row.shape for row in value}) == 1:
            made[name] = torch.stack(value)
        elif len({row.shape[1:] for row in value}) == 1 and all(row.ndim for row in value):
            made[name] = pad_sequence(value, batch_first=True)
            made[f"{ROWS_OF}{name}"] = torch.tensor([len(row) for row in value])
            ragged.append(name)
        else:
            raise NotUnderstoodError(f"'{name}' is a list of tensors that differ in more than their length")
    return replace(call, ragged=tuple(ragged)), made


def on_cpu(value: Any) -> Any:
    """A tensor, or each of a list, on the CPU, floating point in float32."""
    if isinstance(value, list):
        return [on_cpu(row) for row in value]
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value


def same(one: Any, other: Any) -> bool:
    """Whether two arguments hold the same, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(other) == len(one) and all(map(same, one, other))
    return bool(one == other)


def _at(arguments: Any, name: str) -> Any:
    for part in name.split("."):
        arguments = arguments[part] if isinstance(arguments, Mapping) else arguments[int(part)]
    return arguments
