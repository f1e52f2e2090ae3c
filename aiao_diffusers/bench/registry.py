"""Named things with listed hyper-parameters; a wrong name is answered with the nearest right one."""

import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from ..errors import ConfigError


Built = TypeVar("Built")
Registered = TypeVar("Registered", bound=Callable[..., Any])


@dataclass(frozen=True)
class Attack:
    """One attack.

    Args:
        name (`str`): as suites and tables write it.
        run: `run(denoiser, context, **hyper_parameters)` changes the denoiser or returns another one.
        strength (`str`, *optional*): the hyper-parameter that curves are drawn against.
        hyper (`dict`): every hyper-parameter with its default.
    """

    name: str
    run: Callable[..., nn.Module]
    strength: str | None
    hyper: Mapping[str, Any]

    @property
    def summary(self) -> str:
        """First line of the attack's docstring."""
        return (inspect.getdoc(self.run) or "").partition("\n")[0]


ATTACKS: dict[str, Attack] = {}
METHODS: dict[str, type] = {}


def attack(name: str, strength: str | None = None) -> Callable[[Registered], Registered]:
    """Register `run(denoiser, context, *, hyper=default, ...)`, whose keyword-only arguments are its hyper-parameters; or, where
    these are many, a frozen dataclass of them that is called with `(denoiser, context)`."""

    def register(run: Registered) -> Registered:
        if isinstance(run, type):
            hyper = {f.name: f.default for f in dataclasses.fields(run)}
            ATTACKS[name] = Attack(name, _caller(run), strength, hyper)
        else:
            parameters = inspect.signature(run).parameters.values()
            hyper = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
            ATTACKS[name] = Attack(name, run, strength, hyper)
        return run

    return register


def _caller(kind: Callable[..., Any]) -> Callable[..., nn.Module]:
    def run(denoiser: nn.Module, context: Any, **hyper: Any) -> nn.Module:
        attacked: nn.Module = kind(**hyper)(denoiser, context)
        return attacked

    run.__doc__ = kind.__doc__
    return run


def method(name: str) -> Callable[[type], type]:
    """Register a marking method: a frozen dataclass whose fields are its hyper-parameters (see `peers`)."""

    def register(kind: type) -> type:
        METHODS[name] = kind
        return kind

    return register


def known(what: str, name: object, choices: Iterable[str]) -> str:
    """`name` if it is among `choices`.

    Raises:
        ConfigError: it is not; the message names the nearest.
    """
    choices = sorted(choices)
    if isinstance(name, str) and name in choices:
        return name
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(choices)}."
    raise ConfigError(f"unknown {what} '{name}': {hint}")


def same_kind(where: str, value: Any, default: Any) -> Any:
    """`value` if it is of the kind of `default` (an integer passes for a float, anything for None).

    Raises:
        ConfigError: it is not.
    """
    kinds: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
    wanted = kinds.get(type(default))
    if wanted is None or (isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where} is {value!r}: it must be a finite number.")
        return float(value) if type(default) is float else value
    raise ConfigError(f"{where} is {value!r}: it must be of the kind of its default, {default!r}.")


def build(kind: type[Built], fields: Any, where: str) -> Built:
    """A dataclass from a YAML mapping.

    Raises:
        ConfigError: not a mapping, an unknown field (the nearest is named), a missing one, or one of another kind.
    """
    if not isinstance(fields, dict):
        raise ConfigError(f"{where} is {fields!r}: it must be a mapping of fields.")
    declared = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for name, value in fields.items():
        spec = declared[known(f"field of {where}", name, declared)]
        default = None if spec.default is dataclasses.MISSING else spec.default
        if default is None and spec.type is str and not isinstance(value, str):
            raise ConfigError(f"{where}: {name} is {value!r}: it must be text.")
        values[name] = same_kind(f"{where}: {name}", value, default)
    for name, spec in declared.items():
        if name not in values and spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where} lacks the field '{name}'.")
    return kind(**values)
