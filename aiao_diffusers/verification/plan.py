"""The plan of a reading: which looks are taken, in which order, fixed before anything is seen.

The proof of `SequentialTest` rests on a list that was fixed beforehand: what is seen may decide whether to go on, never what is
looked at next. So the list is data: `ReadingPlan.passes` makes it from what the verifier chose and offered, `PlanRun` walks it,
and the report prints it.

    plain x1      after 1, 2, 4, ... trials by hits; then rank scores of the same readings; then those whitened
    beyond the twin x1                     with the clean twin: rank scores of what the suspect answers beyond it; then whitened
    plain x2, x4                           louder triggers, as x1, not whitened
    aligned x1, x2, x4                     with a reference: through an alignment, once after all trials
    healed x1, x2, x4                      with healing: on a healed copy; with a reference too, on that copy aligned
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import ConfigError


AMPLITUDES = (1.0, 2.0, 4.0)  # an attacker who suppresses a mark rarely erases it

Statistic = Literal["hits", "ranks", "whitened"]
View = Literal["plain", "beyond the twin", "aligned", "healed", "healed, aligned"]


@dataclass(frozen=True)
class Futility:
    """When to end a reading that is hopeless. Whether to go on may depend on what was seen, so p stays exact.

    Args:
        trials (`int`, defaults to 4): plain trials at the first amplitude before the decision.
        alpha (`float`, defaults to 0.05): the reading goes on where hits or rank scores of those trials have a raw p of at most
            this; an unmarked model is read on about 7 times in a hundred.
    Raises:
        ConfigError: trials below 1, or alpha outside (0, 1).
    Source: our choice.
    """

    trials: int = 4
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if self.trials < 1 or not 0 < self.alpha < 1:
            raise ConfigError(
                f"futility asks for at least 1 trial and alpha in (0, 1), got {self.trials}, {self.alpha}."
            )

    def is_hopeless(self, log10_p: Sequence[float]) -> bool:
        """Whether none of the raw p-values seen is at most `alpha`."""
        return min(log10_p) > math.log10(self.alpha)


@dataclass(frozen=True)
class PlannedLook:
    """One look of a plan.

    Args:
        label (`str`): as the report names it. statistic (`str`): what is made of the readings. trials (`int`): how many of its
            pass it reads.
    """

    label: str
    statistic: Statistic
    trials: int


@dataclass(frozen=True)
class Pass:
    """Looks that share readings: one amplitude, seen in one way.

    Args:
        view (`str`): how the suspect is seen. amplitude (`float`): of the trigger, in units of the record's.
        looks (`tuple[PlannedLook, ...]`): in order.
        regardless (`bool`): begin it even where an earlier look has verified. whole (`bool`): once begun, take every look.
        offered (`bool`): made possible by what the verifier offered (twin, reference, healing); futility does not end it.
    """

    view: View
    amplitude: float
    looks: tuple[PlannedLook, ...]
    regardless: bool = False
    whole: bool = False
    offered: bool = False

    @property
    def label(self) -> str:
        """The part of the labels that its looks share."""
        return f"{'amplitude' if self.view == 'plain' else self.view} x{self.amplitude:g}"


@dataclass(frozen=True)
class ReadingPlan:
    """What is looked at, in which order, and when to stop. To be fixed before the suspect is seen.

    If you try n plans and report the smallest p, multiply it by n.

    Args:
        alpha (`float`, defaults to 1e-6): chance of a false `verified`, in (0, 1).
        trials (`int`, defaults to 8): Monte Carlo trials of a pass, at most.
        seed (`int`, defaults to 0): of sub-paths, timesteps, probe inputs and noise.
        amplitudes (`Sequence[float]`, defaults to 1, 2, 4): trigger amplitudes, in units of the record's.
        early_stop (`bool`, defaults to True): stop at the first look that verifies. If False, run every trial (an accurate
            verification rate needs them) and every look at the first amplitude and beyond the twin; the smallest adjusted
            p-value is reported.
        whiten (`bool`, defaults to True): look at whitened responses too. It costs 80 evaluations, only where the looks before
            do not verify.
        futility (`Futility`, *optional*): when to end a hopeless reading; default: never.
        commitments (`int`, defaults to 1): how many the owner has published; p is multiplied by it. leaves (`int`, defaults to 1): how
            many leaves could have been shown in this one's place, likewise; `verify` sets it.
        clean_twin, reference, healing (`bool`, default False): which of these the verifier offers; `verify` sets them.
    Raises:
        ConfigError: a value out of range.
    Source: our choice.
    """

    alpha: float = 1e-6
    trials: int = 8
    seed: int = 0
    amplitudes: tuple[float, ...] = AMPLITUDES
    early_stop: bool = True
    whiten: bool = True
    futility: Futility | None = None
    commitments: int = 1
    leaves: int = 1
    clean_twin: bool = False
    reference: bool = False
    healing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "amplitudes", tuple(self.amplitudes))
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha is a probability between 0 and 1, got {self.alpha}.")
        for name in ("trials", "commitments", "leaves"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}.")
        if not self.amplitudes or not all(0 < amplitude < math.inf for amplitude in self.amplitudes):
            raise ConfigError(f"amplitudes are positive numbers, at least one, got {list(self.amplitudes)}.")

    @classmethod
    def thorough(cls, **fields: Any) -> "ReadingPlan":
        """Every look that is possible: a negative verdict costs 128 evaluations. The default of `verify`."""
        return cls(**fields)

    @classmethod
    def fast(cls, **fields: Any) -> "ReadingPlan":
        """The same looks, ended where four plain trials show nothing: most negatives cost 8 evaluations. The default of `scan`."""
        return cls(**{"futility": Futility(), **fields})

    @property
    def name(self) -> str:
        """`fast` where hopeless readings end early, else `thorough`."""
        return "thorough" if self.futility is None else "fast"

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The looks in order, grouped by the readings that they share."""
        first, *louder = self.amplitudes
        complete = not self.early_stop
        found = [self._plain(first, whiten=self.whiten, regardless=complete)]
        if self.clean_twin:
            found.append(self._beyond(first))
        found += [self._plain(amplitude, whiten=False, regardless=False) for amplitude in louder]
        views: list[View] = ["aligned"] if self.reference else []
        if self.healing:
            views += ["healed", "healed, aligned"] if self.reference else ["healed"]
        found += [self._through(view, number) for view in views for number in range(len(self.amplitudes))]
        return tuple(found)

    @property
    def looks(self) -> tuple[PlannedLook, ...]:
        """All looks in order; the k-th that is taken pays for 2^k."""
        return tuple(look for part in self.passes for look in part.looks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: name, fields, and the labels of the looks in order."""
        return {"name": self.name, **asdict(self), "looks": [look.label for look in self.looks]}

    def _plain(self, amplitude: float, *, whiten: bool, regardless: bool) -> Pass:
        label = f"amplitude x{amplitude:g}"
        counts = [n for n in range(1, self.trials + 1) if n == self.trials or not n & (n - 1)]
        looks = [PlannedLook(label, "hits", n) for n in counts]
        looks += self._by_ranks(label, whiten=whiten)
        return Pass("plain", amplitude, tuple(looks), regardless=regardless, whole=not self.early_stop)

    def _beyond(self, amplitude: float) -> Pass:
        looks = self._by_ranks(f"beyond the twin x{amplitude:g}", whiten=self.whiten)
        complete = not self.early_stop
        return Pass("beyond the twin", amplitude, tuple(looks), regardless=complete, whole=complete, offered=True)

    def _through(self, view: View, number: int) -> Pass:
        amplitude = self.amplitudes[number]
        label = f"{view} x{amplitude:g}"
        looks = (PlannedLook(label, "hits", self.trials), *self._by_ranks(label, whiten=self.whiten and not number))
        return Pass(view, amplitude, looks, offered=True)

    def _by_ranks(self, label: str, *, whiten: bool) -> list[PlannedLook]:
        looks = [PlannedLook(f"{label}, ranks", "ranks", self.trials)]
        return [*looks, PlannedLook(f"{label}, whitened", "whitened", self.trials)] if whiten else looks
