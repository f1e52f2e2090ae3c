"""Looks at a suspect: trials, averaged, give a p-value at each look, and each look pays its share of alpha.

The list of looks is fixed by what the verifier passes in, not by what is seen: the plain amplitude x1 after 1, 2, 4, ...
trials; with the clean twin two looks at what the suspect answers beyond it (`read_beyond_twin`); x2 and x4 as x1; with a reference the
three amplitudes through an alignment; with healing the three amplitudes on the healed copy, and, with a reference too, on the
healed copy through its own alignment; these once each, after all trials. After an
amplitude's last trial the same readings are looked at once more, by rank scores (`ranks`), and those of the first amplitude
a third time, seen against what wrong masks call up (`whiten`). Seeing decides only when to stop, as `SequentialTest` asks.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..denoiser.call import CallInputs
from ..denoiser.instrument import Coordinates, InstrumentedDenoiser, instrument
from ..denoiser.schedule import probe_timesteps
from ..denoiser.setup import eval_mode, placement
from ..denoiser.sites import Site, attention_modules, trace_on
from ..errors import AIAOError, NotTestableError, ShapeError
from ..mark.key import WatermarkKey
from ..mark.reading import Reading, read_subpath
from ..mark.record import WatermarkRecord
from ..mark.selection import choose
from ..mark.subpath import SubPath, draw
from ..stats.hits import SiteTest, combined_log10_p, count_hits, site_log10_p
from ..stats.natural_response import orthogonal_to, whiten
from ..stats.ranks import rank_log10_p, rank_site
from ..stats.sequential import SequentialTest


MIN_SHARE = 0.5  # of the key's in-sites and of its out-sites that a suspect must have; below, little is read
FIRST_CHANNELS = 1024  # bits whose floor, 1e-306, is as deep as anyone needs: a wide model's first forward ends there
AMPLITUDES = (1.0, 2.0, 4.0)  # an attacker who suppresses a mark rarely erases it
WRONG_INPUTS, WRONG_MASKS = 16, 4  # forwards of a whitened look, and wrong masks in each beside a clean part


@dataclass
class Evidence:
    """Readings of one amplitude, summed over its trials; trials share masks, so d is averaged before the split."""

    key: WatermarkKey
    response_sum: dict[str, np.ndarray] = field(default_factory=dict)
    trial_log10_p: list[float] = field(default_factory=list)
    trial_bits: list[dict[str, Any]] = field(default_factory=list)

    def add(self, subpath: SubPath, readings: Sequence[Reading]) -> None:
        """One trial more; `trial_bits` keeps which in-sites it armed and each out-site's share of agreeing bits."""
        single = {reading.site: reading.d.double().numpy() for reading in readings}
        for name, d in single.items():
            self.response_sum[name] = self.response_sum.get(name, 0.0) + d
        triples = self.triples(single)
        self.trial_log10_p.append(combined_log10_p([t for _, t in triples]))
        bits = {name: agreeing / channels for name, (channels, _, agreeing) in triples}
        self.trial_bits.append({"in": [site.name for site in subpath.in_sites], "bits": bits})

    def whitened_by(self, wrong: dict[str, np.ndarray]) -> "Evidence":
        """The same readings, whitened by responses to wrong masks, `(N, C)` by out-site."""
        found = {}
        for name, total in self.response_sum.items():
            # Sub-paths that begin late leave early out-sites out.
            mean = total / sum(name in cell["bits"] for cell in self.trial_bits)
            found[name] = whiten(mean, wrong[name]) if name in wrong else mean
        return replace(self, response_sum=found)

    def triples(self, response: dict[str, np.ndarray]) -> list[tuple[str, tuple[int, int, int]]]:
        """Of each out-site its name and `(channels, plus, hits)`."""
        return [(name, count_hits(d, self.key.response_pattern(name, len(d)))) for name, d in response.items()]

    def log10_p(self) -> float:
        """By hits, all trials so far together."""
        return combined_log10_p([t for _, t in self.triples(self.response_sum)])

    def rank_log10_p(self) -> float:
        """By rank scores, of the same readings."""
        patterns = ((d, self.key.response_pattern(name, len(d))) for name, d in self.response_sum.items())
        return rank_log10_p([rank_site(d, s) for d, s in patterns])

    def tests(self) -> tuple[SiteTest, ...]:
        """Each out-site by itself."""
        return tuple(
            SiteTest(n, c, h, site_log10_p(c, plus, h)) for n, (c, plus, h) in self.triples(self.response_sum)
        )


@dataclass
class Looks:
    """All looks at one suspect, in order; `read_amplitudes` takes the next ones.

    Args:
        ins, outs: the key's sites. trials (`int`): for each amplitude, at most. seed (`int`): of sub-paths and inputs. whiten
        (`bool`): take the look at whitened responses.
    Attributes:
        sequence: the looks so far. plain: evidence of the first amplitude, for the verification rate. whitened: of the last
        whitened look. wrong: responses to wrong masks that it saw, `(N, C)` by out-site. beyond, beyond_whitened: of the looks
        beyond the twin. response, tests, by_ranks: of the best look, and whether its p-value is by rank scores. notes: for each
        look what the report adds to it. missed: looks that could not be taken, and why. evaluations: single-sample forwards
        spent.
    """

    key: WatermarkKey
    record: WatermarkRecord
    ins: Sequence[Site]
    outs: Sequence[Site]
    alpha: float
    trials: int
    seed: int
    amplitudes: Sequence[float] = AMPLITUDES
    whiten: bool = True

    def __post_init__(self) -> None:
        self.sequence = SequentialTest(alpha=self.alpha)
        self.random, self.generator = np.random.default_rng(self.seed), torch.Generator().manual_seed(self.seed)
        self.plain = self.whitened = self.beyond = self.beyond_whitened = Evidence(self.key)
        self.wrong: dict[str, np.ndarray] = {}
        self.response: dict[str, np.ndarray] = {}
        self.tests: tuple[SiteTest, ...] = ()
        self.by_ranks = False
        self.notes: list[dict[str, Any]] = []
        self.evaluations = 0
        self.missed: list[str] = []
        self._best = (math.inf, math.inf)

    @property
    def verified(self) -> bool:
        """Whether some look has verified."""
        return self.sequence.verdict == "verified"

    def read_amplitudes(
        self,
        denoiser: nn.Module,
        label: str = "amplitude",
        *,
        through: Coordinates | None = None,
        note: dict[str, Any] | None = None,
        gradual: bool = False,
        early_stop: bool = True,
        which: slice = slice(None),
    ) -> None:
        """Take the looks at the amplitudes, until one verifies.

        Args:
            through: an alignment to read through. note: what the report adds to these looks.
            gradual (`bool`): look after 1, 2, 4, ... trials, not only after all, the first of them on the first
                `FIRST_CHANNELS` channels alone if it may be the last.
            early_stop (`bool`): stop at the first look that verifies; False takes the others of its amplitude too.
            which (`slice`): of the amplitudes, all by default.
        """
        names = [site.name for site in (*self.ins, *self.outs)]
        with eval_mode(denoiser), instrument(denoiser, names, self.record.factors) as wired:
            for number, amplitude in list(enumerate(self.amplitudes))[which]:
                named = f"{label} x{amplitude:g}"
                evidence = Evidence(self.key)
                if not self.sequence.looks:
                    self.plain = evidence
                try:
                    for trial in range(1, self.trials + 1):
                        subpath = draw(self.ins, self.outs, self.random)
                        if gradual and early_stop and trial == 1:
                            subpath = subpath.until(FIRST_CHANNELS)
                        evidence.add(subpath, self.trial(wired, subpath, amplitude, through))
                        if trial == self.trials or (gradual and not trial & (trial - 1)):
                            self._look(named, evidence, note)
                            if self.verified and early_stop:
                                return
                    self._look(f"{named}, ranks", evidence, note, ranks=True)
                    if self.verified and early_stop:
                        return
                    if self.whiten and not number:
                        self.wrong = self._wrong(wired, amplitude, through)
                        self.whitened = evidence.whitened_by(self.wrong)
                        self._look(f"{named}, whitened", self.whitened, note, ranks=True)
                except NotTestableError as error:
                    # A larger trigger may overflow a half-precision model; whether it does hangs on no response pattern,
                    # so the looks that are left stay exact.
                    if not self.sequence.looks:
                        raise
                    self.missed.append(f"the looks '{named}' ended early: {error}")
                if self.verified:
                    return

    def read_beyond_twin(self, denoiser: nn.Module, twin: nn.Module, *, early_stop: bool = True) -> None:
        """Looks, by rank scores, at what the suspect answers beyond its clean twin, on the same inputs (`whiten.beyond`).

        What any mask calls up is in both and goes; what embedding added stays, however little a merge has left of it. Where
        wrong masks were seen (`read_amplitudes`), a second look weighs the same readings by them.
        The twin was made before the response patterns were of any use, so what is beyond it depends on them no more than d does:
        p stays exact. That binds an honest owner, as an alignment does (`align`): a twin made with the key in mind could push
        every suspect towards the patterns, which the same look at another clean model shows.

        Args:
            early_stop (`bool`): stop at the first look if it verifies.
        Raises:
            NotTestableError: an activation is not finite. SiteError: suspect and twin are one and the same module.
        """
        names, amplitude = [site.name for site in (*self.ins, *self.outs)], self.amplitudes[0]
        self.beyond, factors = Evidence(self.key), self.record.factors
        with (
            eval_mode(denoiser),
            eval_mode(twin),
            instrument(denoiser, names, factors) as own,
            instrument(twin, names, factors) as clean,
        ):
            for _ in range(self.trials):
                subpath, state = draw(self.ins, self.outs, self.random), self.generator.get_state()
                readings = self.trial(own, subpath, amplitude, None)
                # The very same inputs once more: what is left is then the weights' alone.
                self.generator.set_state(state)
                pairs = zip(readings, self.trial(clean, subpath, amplitude, None, "the clean twin"), strict=True)
                left = ((a.site, orthogonal_to(a.d.double().numpy(), b.d.double().numpy())) for a, b in pairs)
                self.beyond.add(subpath, [Reading(site, torch.from_numpy(d)) for site, d in left])
        label = f"beyond the twin x{amplitude:g}"
        self._look(f"{label}, ranks", self.beyond, None, ranks=True)
        if self.wrong and not (self.verified and early_stop):
            # Their mean is a natural response, which is gone from these readings.
            spread = {name: rows - rows.mean(0) for name, rows in self.wrong.items()}
            self.beyond_whitened = self.beyond.whitened_by(spread)
            self._look(f"{label}, whitened", self.beyond_whitened, None, ranks=True)

    def _look(self, label: str, evidence: Evidence, note: dict[str, Any] | None, *, ranks: bool = False) -> None:
        log10_p = evidence.rank_log10_p() if ranks else evidence.log10_p()
        self.sequence = self.sequence.look(label, trials=len(evidence.trial_log10_p), log10_p=log10_p)
        self.notes.append(note or {})
        # Adjusted p-values of an unmarked model are all 1; the raw ones tell which look came nearest.
        rank = (self.sequence.looks[-1].log10_p_adjusted, log10_p)
        if rank < self._best:
            self._best = rank
            self.response, self.tests, self.by_ranks = dict(evidence.response_sum), evidence.tests(), ranks

    def trial(
        self,
        wired: InstrumentedDenoiser,
        subpath: SubPath,
        amplitude: float,
        through: Coordinates | None,
        who: str = "the suspect",
    ) -> list[Reading]:
        """The readings of one sub-path, each of its out-sites once."""
        inputs = self.draw_input(wired)
        kappa, pairs = self.record.kappa * amplitude, self.record.pairs
        self.evaluations += 1 + (len(subpath.out_sites) if pairs else 1)
        with untestable_on_failure(who):
            return read_subpath(wired, self.key, subpath, kappa, inputs, through, pairs=pairs)

    def _wrong(
        self, wired: InstrumentedDenoiser, amplitude: float, through: Coordinates | None
    ) -> dict[str, np.ndarray]:
        """Responses to wrong masks, `(N, C)` by out-site.

        The masks are of the key's children: nobody else can prepare a suspect for them, and no response pattern is among what
        they are made of.
        """
        found: dict[str, list[torch.Tensor]] = {}
        for number in range(WRONG_INPUTS):
            subpath, inputs = draw(self.ins, self.outs, self.random), self.draw_input(wired)
            children = [self.key.child(f"whiten/{number}/{row}") for row in range(WRONG_MASKS)]
            masks = {
                site.name: torch.from_numpy(np.stack([c.trigger_mask(site.name, site.width_out) for c in children]))
                for site in subpath.in_sites
            }
            self.evaluations += 1 + WRONG_MASKS
            with untestable_on_failure():
                rows = wired.responses(masks, subpath.out_sites, self.record.kappa * amplitude, inputs, through)
            for name, d in rows.items():
                found.setdefault(name, []).append(d)
        return {name: torch.cat(rows).double().numpy() for name, rows in found.items()}

    def draw_input(self, wired: InstrumentedDenoiser) -> CallInputs:
        """A noised row of the bank, its timestep and its conditioning, where the denoiser is."""
        record, generator = self.record, self.generator
        row = record.bank.take(torch.randint(len(record.bank), (1,), generator=generator))
        noise = torch.randn(row.latents.shape, generator=generator)
        t = torch.randint(*probe_timesteps(record.timesteps), (1,), generator=generator)
        device, dtype = placement(wired.denoiser)
        sample = record.noised(row.latents, noise, t).to(device, dtype)
        return CallInputs(sample, t.to(device), row.keywords(device, dtype))

    def to_dicts(self) -> tuple[dict[str, Any], ...]:
        """The looks for a report."""
        fields = ("label", "trials", "log10_p", "log10_p_adjusted")
        return tuple(
            {**{name: getattr(look, name) for name in fields}, **note}
            for look, note in zip(self.sequence.looks, self.notes, strict=True)
        )


def key_sites(
    denoiser: nn.Module, key: WatermarkKey, record: WatermarkRecord
) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """The in-sites and out-sites of `key` that this denoiser has.

    By the record's layout, without a forward: the key chooses among all sites, those missing here drop out by name, which
    depends on no response pattern, so p stays exact. A record without a layout needs every site and one traced forward.

    Raises:
        NotTestableError: fewer than `MIN_SHARE` of the key's in-sites or of its out-sites are there.
    """
    if record.layout is None:
        with untestable_on_failure():
            sites = trace_on(denoiser, record.bank)
        if len(sites) != record.sites:
            raise NotTestableError(f"the suspect has {len(sites)} attention sites, the record names {record.sites}.")
        return choose(sites, key, record.in_sites, record.out_sites)
    ins, outs = choose(list(record.layout), key, record.in_sites, record.out_sites, record.silent)
    here = attention_modules(denoiser)
    found_ins, found_outs = (tuple(site for site in part if site.name in here) for part in (ins, outs))
    if len(found_ins) < MIN_SHARE * len(ins) or len(found_outs) < MIN_SHARE * len(outs):
        raise NotTestableError(
            f"the suspect has {len(found_ins)} of the key's {len(ins)} in-sites and {len(found_outs)} of its {len(outs)} "
            f"out-sites ({len(here)} of {record.sites} sites); at least {MIN_SHARE:.0%} of each are needed."
        )
    return found_ins, found_outs


@contextmanager
def untestable_on_failure(who: str = "the suspect") -> Iterator[None]:
    """Turn what a denoiser raises on inputs that do not fit it into NotTestableError."""
    try:
        yield
    except ShapeError as error:
        raise NotTestableError(f"{who}'s widths are not the record's: {error}") from error
    except (AIAOError, torch.OutOfMemoryError):
        raise  # the latter tells of this machine, not of the suspect
    except (RuntimeError, ValueError, TypeError) as error:
        raise NotTestableError(f"{who} does not take the record's probe inputs: {error}") from error


def wrong_responses(
    response: dict[str, np.ndarray], key: WatermarkKey, count: int | None = None, *, ranks: bool = False
) -> dict[str, Any]:
    """The same readings against `count` wrong response patterns: their p-values must look uniform.

    Args:
        count (`int`, *optional*): default 100, of rank scores 20: those of a wide model take up to seconds each.
        ranks (`bool`): by rank scores, if the verdict is by them.

    Returns:
        `{"n", "median_log10_p", "smallest_log10_p", "hits"}`; about -.3 and -log10(n) are expected. `hits` holds each
        pattern's total, for a histogram.
    """
    count = count or (20 if ranks else 100)
    values, totals = [], []
    for number in range(count):
        wrong = key.child(f"control/{number}")
        other = Evidence(wrong, response)
        values.append(other.rank_log10_p() if ranks else other.log10_p())
        totals.append(sum(agreeing for _, (_, _, agreeing) in other.triples(response)))
    return {
        "n": count,
        "median_log10_p": float(np.median(values)),
        "smallest_log10_p": float(min(values)),
        "hits": totals,
    }
