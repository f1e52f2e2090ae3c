"""Former names that go on working: each use warns and says the present name."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from .errors import ConfigError


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def renamed_arguments(**names: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Let a function take arguments by their former names too, as keywords; signature and positions stay the new ones.

    Args:
        names (`str`): present name by former name, `@renamed_arguments(clean_base="controls")`. A function that passes
            `**kwargs` on may name arguments of the function behind it.
    Warns:
        FutureWarning: a former name was used; the line blamed is the caller's.
    Raises:
        ConfigError: on a call, an argument was given by both its names.
        TypeError: on decoration, a present name is no argument of the function, or a former one still is.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        parameters = inspect.signature(function).parameters
        _check(function.__name__, parameters, names)
        order = list(parameters)  # `*args` ends it, but none of ours takes those

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for former in names.keys() & kwargs.keys():
                present = names[former]
                if present in kwargs or present in order[: len(args)]:
                    raise ConfigError(
                        f"{function.__name__}() got {present}= and {former}=, its former name: pass {present}= alone."
                    )
                warn_renamed(f"{former}=", f"{present}=", stacklevel=2)
                kwargs[present] = kwargs.pop(former)
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_attribute(former: str, present: str) -> Any:
    """A property for the former name of an attribute: reads the present one and warns.

    Args:
        former (`str`): the name that the property is bound to. present (`str`): the attribute that it reads.
    """

    def read(self: object) -> Any:
        warn_renamed(f"{type(self).__name__}.{former}", present, stacklevel=2)
        return getattr(self, present)

    read.__doc__ = f"Former name of `{present}`."
    return property(read)


def warn_renamed(former: str, present: str, stacklevel: int = 1) -> None:
    """Warn that `former` is now called `present`; with `stacklevel` 1 the line blamed is the caller's."""
    # FutureWarning, for Python hides a DeprecationWarning from the people who run a script.
    warnings.warn(f"{former} is now {present}: the former name will go.", FutureWarning, stacklevel=stacklevel + 1)


def _check(function: str, parameters: Any, names: dict[str, str]) -> None:
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for former, present in names.items():
        if former in parameters or not (present in parameters or passes_on):
            raise TypeError(f"{function}() cannot rename {former!r} to {present!r}: see its signature.")
