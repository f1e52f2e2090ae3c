"""Walk a plan of looks over a suspect, pass by pass, and keep what every look saw."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..denoiser.inputs import LatentData, fitting
from ..denoiser.instrument import Coordinates, InstrumentedDenoiser, instrument
from ..denoiser.probes import Probes
from ..denoiser.setup import eval_mode
from ..errors import NotTestableError, SiteError
from ..stats.hits import SiteTest
from ..stats.sequential import SequentialTest
from .alignment import align
from .evidence import Evidence, EvidenceReader
from .healing import BATCH, STEPS, heal_copy
from .plan import Pass, PlannedLook, ReadingPlan, View
from .reference import Reference


Callback = Callable[[int, int], None]

FIRST_CHANNELS = 1024  # bits whose floor, 1e-306, is as deep as anyone needs: a wide model's first forward ends there


@dataclass(frozen=True)
class Offers:
    """What the verifier has beside the suspect: the clean twin, a reference for alignment, latents for healing, own probes."""

    clean_twin: nn.Module | None = None
    reference: Reference | None = None
    healing: LatentData | None = None
    warnings: tuple[str, ...] = ()
    probes: Probes | None = None


@dataclass(frozen=True)
class _Sight:
    """A denoiser to read, through which coordinates, and what the report adds to looks at it."""

    denoiser: nn.Module
    through: Coordinates | None = None
    note: dict[str, Any] | None = None


class PlanRun:
    """One walk of a plan over a suspect; `run` takes the looks.

    Args:
        plan (`ReadingPlan`): what is looked at. reader (`EvidenceReader`): draws and reads the trials.
        denoiser (`nn.Module`): the suspect's. offers (`Offers`): what looks beyond the plain ones need.
        callback (*optional*): called after each look with the number of looks taken and planned.
    Attributes:
        sequence: the looks so far. plain: evidence of the first amplitude, for the verification rate. evidence: the last of each
            view, by its name. whitened: as `evidence`, of whitened looks. response, tests, by_ranks: of the look that came
            nearest, and whether its p-value is by rank scores. notes: for each look what the report adds to it. missed: looks
            that could not be taken, and why. futile: whether the reading was ended as hopeless.
    """

    def __init__(
        self,
        plan: ReadingPlan,
        reader: EvidenceReader,
        denoiser: nn.Module,
        offers: Offers,
        callback: Callback | None = None,
    ) -> None:
        self.plan, self.reader, self.denoiser, self.offers = plan, reader, denoiser, offers
        self._tell = callback or (lambda taken, planned: None)
        self.sequence = SequentialTest(alpha=plan.alpha, factor=plan.commitments * plan.leaves)
        self.plain = Evidence(reader.key)
        self.evidence: dict[View, Evidence] = {}
        self.whitened: dict[View, Evidence] = {}
        self.response: dict[str, np.ndarray] = {}
        self.tests: tuple[SiteTest, ...] = ()
        self.by_ranks = False
        self.notes: list[dict[str, Any]] = []
        self.missed: list[str] = []
        self.futile = False
        self._wrong: dict[str, np.ndarray] = {}
        self._sights: dict[View, _Sight | None] = {"plain": _Sight(denoiser)}
        self._best = (True, math.inf, math.inf)
        self._decided = False

    @property
    def verified(self) -> bool:
        """Whether some look has verified."""
        return self.sequence.verdict == "verified"

    @property
    def ending(self) -> str:
        """Why no further look was taken: `verified`, `futile` or `all looks taken`."""
        return "verified" if self.verified else "futile" if self.futile else "all looks taken"

    def run(self) -> "PlanRun":
        """Take the looks of the plan in order, until one verifies or the reading is hopeless.

        Raises:
            NotTestableError: not even the first look can be taken, or no out-site is evidence in any.
        """
        for part in self.plan.passes:
            if (self.verified and not part.regardless) or (self.futile and not part.offered):
                continue
            if part.view == "beyond the twin":
                self._take_beyond(part)
            elif (sight := self._sight(part.view)) is not None:
                self._take(part, sight)
        if not self.tests:
            raise NotTestableError(
                "every out-site answers alike in most of its channels, so ties would decide: no trigger reaches them, or weights "
                "are broken."
            )
        return self

    def to_dicts(self) -> tuple[dict[str, Any], ...]:
        """The looks taken, for a report."""
        fields = ("label", "trials", "log10_p", "log10_p_adjusted")
        return tuple(
            {**{name: getattr(look, name) for name in fields}, **note}
            for look, note in zip(self.sequence.looks, self.notes, strict=True)
        )

    def _take(self, part: Pass, sight: _Sight) -> None:
        """The looks of a pass at the suspect as it is, aligned or healed."""
        evidence = self._begin(part)
        if not self.sequence.looks:
            self.plain = evidence
        try:
            with self._instrumented(sight.denoiser) as suspect:
                for look in part.looks:
                    self._read_up_to(look, part, evidence, suspect, sight.through)
                    if look.statistic == "whitened":
                        self._wrong = self.reader.read_wrong_masks(suspect, part.amplitude, sight.through)
                        self.whitened[part.view] = evidence.whitened_by(self._wrong)
                    self._look(
                        look, self.whitened[part.view] if look.statistic == "whitened" else evidence, sight.note
                    )
                    if (self.verified and not part.whole) or self._is_hopeless(evidence):
                        return
        except NotTestableError as error:
            # A larger trigger may overflow a half-precision model; whether it does hangs on no response pattern, so the looks
            # that are left stay exact.
            if not self.sequence.looks:
                raise
            self.missed.append(f"the looks '{part.label}' ended early: {error}")

    def _take_beyond(self, part: Pass) -> None:
        """Looks, by rank scores, at what the suspect answers beyond its clean twin; the second weighs them by wrong masks."""
        assert self.offers.clean_twin is not None  # or the plan has no such pass
        evidence = self._begin(part)
        try:
            with self._instrumented(self.denoiser) as own, self._instrumented(self.offers.clean_twin) as clean:
                for _ in range(self.plan.trials):
                    self.reader.read_trial_beyond(own, clean, evidence, part.amplitude)
        except (NotTestableError, SiteError) as error:
            self.missed.append(f"the look beyond the twin is not available: {error}")
            return
        # The mean of responses to wrong masks is a natural response, which is gone from these readings.
        spread = {name: rows - rows.mean(0) for name, rows in self._wrong.items()}
        self.whitened[part.view] = evidence.whitened_by(spread)
        for look in part.looks:
            if look.statistic == "whitened" and not spread:
                continue  # no wrong mask was read
            self._look(look, self.whitened[part.view] if look.statistic == "whitened" else evidence, None)
            if self.verified and not part.whole:
                return

    def _begin(self, part: Pass) -> Evidence:
        found = self.evidence[part.view] = Evidence(self.reader.key)
        return found

    @contextmanager
    def _instrumented(self, denoiser: nn.Module) -> Iterator[InstrumentedDenoiser]:
        with ExitStack() as stack:
            stack.enter_context(eval_mode(denoiser))
            yield stack.enter_context(instrument(denoiser, self.reader.site_names, self.reader.record.factors))

    def _read_up_to(
        self,
        look: PlannedLook,
        part: Pass,
        evidence: Evidence,
        suspect: InstrumentedDenoiser,
        through: Coordinates | None,
    ) -> None:
        """Read trials until `evidence` holds as many as the look wants."""
        for trial in range(len(evidence.trial_log10_p), look.trials):
            # The very first trial may be the last: a wide model's is cut where its bits suffice.
            short = part.view == "plain" and self.plan.early_stop and trial == 0
            self.reader.read_trial(
                suspect, evidence, part.amplitude, through, first_channels=FIRST_CHANNELS if short else None
            )

    def _look(self, look: PlannedLook, evidence: Evidence, note: dict[str, Any] | None) -> None:
        by_ranks = look.statistic != "hits"
        log10_p = evidence.rank_log10_p() if by_ranks else evidence.log10_p()
        self.sequence = self.sequence.look(look.label, trials=len(evidence.trial_log10_p), log10_p=log10_p)
        self.notes.append(note or {})
        self._tell(len(self.sequence.looks), len(self.plan.looks))
        tests = evidence.tests()
        # Adjusted p-values of an unmarked model are all 1; the raw ones tell which look came nearest.
        rank = (not tests, self.sequence.looks[-1].log10_p_adjusted, log10_p)
        if rank < self._best:
            self._best = rank
            self.response, self.tests, self.by_ranks = dict(evidence.response_sum), tests, by_ranks

    def _is_hopeless(self, evidence: Evidence) -> bool:
        """Decides once, at the first amplitude, whether the plain looks go on."""
        futility = self.plan.futility
        if futility is None or self._decided or evidence is not self.plain or self.verified:
            return False
        if len(evidence.trial_log10_p) < min(futility.trials, self.plan.trials):
            return False
        self._decided = True
        self.futile = futility.is_hopeless([evidence.log10_p(), evidence.rank_log10_p()])
        return self.futile

    def _sight(self, view: View) -> _Sight | None:
        """How the suspect is seen in `view`, made once; None, with a word in `missed`, where it cannot be."""
        if view not in self._sights:
            self._sights[view] = self._heal() if view == "healed" else self._align(view)
        return self._sights[view]

    def _heal(self) -> _Sight | None:
        assert self.offers.healing is not None  # or the plan has no such pass
        latents, schedule = fitting(self.offers.healing, self.denoiser), self.reader.record.scheduler
        try:
            copy = heal_copy(self.denoiser, latents, schedule, steps=STEPS, seed=self.plan.seed)
        except NotTestableError as error:
            self.missed.append(f"the healing looks are not available: {error}")
            return None
        self.reader.evaluations += STEPS * BATCH
        return _Sight(copy)

    def _align(self, view: View) -> _Sight | None:
        assert self.offers.reference is not None  # or the plan has no such pass
        under = self._sights["plain"] if view == "aligned" else self._sight("healed")
        if under is None:
            return None
        try:
            alignment = align(self.offers.reference, under.denoiser, self.reader.ins, self.reader.outs)
        except NotTestableError as error:
            self.missed.append(f"the alignment looks are not available: {error}")
            return None
        self.reader.evaluations += len(self.offers.reference.inputs)
        return _Sight(under.denoiser, alignment, alignment.summary())
