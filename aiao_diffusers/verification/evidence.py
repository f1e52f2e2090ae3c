"""What trials of a key show at a suspect: responses summed over sub-paths, and the p-values that follow from them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..denoiser.call import CallInputs
from ..denoiser.instrument import Coordinates, InstrumentedDenoiser
from ..denoiser.schedule import probe_timesteps
from ..denoiser.setup import placement
from ..denoiser.sites import Site, attention_modules, trace_on, watch_order
from ..errors import AIAOError, ConfigError, NotTestableError, RecordError, ShapeError
from ..mark.key import WatermarkKey
from ..mark.reading import Reading, read_subpath
from ..mark.record import WatermarkRecord
from ..mark.record_checks import check_order
from ..mark.selection import choose
from ..mark.subpath import SubPath, draw
from ..protocol.leaves import LeafKey
from ..stats.hits import SiteTest, combined_log10_p, count_hits, is_split, site_log10_p
from ..stats.natural_response import orthogonal_to, whiten
from ..stats.ranks import rank_log10_p, rank_site


UNFIT_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a denoiser raises on inputs that do not fit it: a bank from a stranger may name any argument, of any shape."""
MIN_SHARE = 0.5  # of the key's in-sites and of its out-sites that a suspect must have; below, little is read
WRONG_INPUTS, WRONG_MASKS = 16, 4  # forwards of a whitened look, and wrong masks in each beside a clean part


@dataclass
class Evidence:
    """Readings of one amplitude, summed over its trials; trials share masks, so d is averaged before the split.

    An out-site whose response leaves the split to ties (`is_split`) is no evidence and is left out.
    """

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
        self.trial_log10_p.append(_combine(triples))
        bits = {name: agreeing / channels for name, (channels, _, agreeing) in triples}
        self.trial_bits.append({"in": [site.name for site in subpath.in_sites], "bits": bits})

    def whitened_by(self, wrong: dict[str, np.ndarray]) -> "Evidence":
        """The same readings, whitened by responses to wrong masks, `(N, C)` by out-site."""
        found = {}
        for name, total in self.response_sum.items():
            if not is_split(total):
                continue  # of a whitened response nobody could tell any more
            # Sub-paths that begin late leave early out-sites out.
            mean = total / max(1, sum(name in cell["bits"] for cell in self.trial_bits))
            found[name] = whiten(mean, wrong[name]) if name in wrong else mean
        return replace(self, response_sum=found)

    def triples(self, response: dict[str, np.ndarray]) -> list[tuple[str, tuple[int, int, int]]]:
        """Of each out-site that is evidence its name and `(channels, plus, hits)`."""
        return [
            (name, count_hits(d, self.key.response_pattern(name, len(d))))
            for name, d in response.items()
            if is_split(d)
        ]

    def log10_p(self) -> float:
        """By hits, all trials so far together; 0 where no out-site is evidence."""
        return _combine(self.triples(self.response_sum))

    def rank_log10_p(self) -> float:
        """By rank scores, of the same readings."""
        told = [(d, self.key.response_pattern(name, len(d))) for name, d in self.response_sum.items() if is_split(d)]
        return rank_log10_p([rank_site(d, s) for d, s in told]) if told else 0.0

    def tests(self) -> tuple[SiteTest, ...]:
        """Each out-site by itself."""
        return tuple(
            SiteTest(n, c, h, site_log10_p(c, plus, h)) for n, (c, plus, h) in self.triples(self.response_sum)
        )


def _combine(triples: Sequence[tuple[str, tuple[int, int, int]]]) -> float:
    return combined_log10_p([t for _, t in triples]) if triples else 0.0


class EvidenceReader:
    """Draws trials of a key at a suspect and reads them; all draws come from one seed, in the order they are asked for.

    Args:
        key (`WatermarkKey`): whose masks are armed. record (`WatermarkRecord`): probe bank, amplitude and noise schedule.
        ins, outs (`Sequence[Site]`): the key's sites. seed (`int`): of sub-paths and inputs.
    Attributes:
        evaluations (`int`): single-sample forwards spent.
    """

    def __init__(
        self, key: WatermarkKey, record: WatermarkRecord, ins: Sequence[Site], outs: Sequence[Site], seed: int
    ) -> None:
        self.key, self.record, self.ins, self.outs = key, record, ins, outs
        self.random, self.generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.evaluations = 0

    @property
    def site_names(self) -> list[str]:
        """Of in-sites and out-sites, for `instrument`."""
        return [site.name for site in (*self.ins, *self.outs)]

    def read_trial(
        self,
        suspect: InstrumentedDenoiser,
        evidence: Evidence,
        amplitude: float,
        through: Coordinates | None = None,
        *,
        first_channels: int | None = None,
    ) -> None:
        """Add one trial to `evidence`: a random sub-path on a random input.

        Args:
            through (`Coordinates`, *optional*): an alignment to read through.
            first_channels (`int`, *optional*): end the forward behind so many channels of out-sites; default: read all.
        Raises:
            NotTestableError: the suspect does not take the inputs, or its activations are not finite.
        """
        subpath = draw(self.ins, self.outs, self.random)
        if first_channels is not None:
            subpath = subpath.until(first_channels)
        evidence.add(subpath, self._read(suspect, subpath, amplitude, through))

    def read_trial_beyond(
        self, suspect: InstrumentedDenoiser, clean_twin: InstrumentedDenoiser, evidence: Evidence, amplitude: float
    ) -> None:
        """Add to `evidence` what the suspect answers beyond its clean twin in one trial, on the same input (`orthogonal_to`).

        What any mask calls up is in both and goes; what embedding added stays, however little a merge has left of it. The twin
        was made before the response patterns were of any use, so what is beyond it depends on them no more than d does: p stays
        exact. That binds an honest owner, as an alignment does (`alignment`): a twin made with the key in mind could push every
        suspect towards the patterns, which the same look at another clean model shows.
        """
        subpath, state = draw(self.ins, self.outs, self.random), self.generator.get_state()
        readings = self._read(suspect, subpath, amplitude, None)
        # The very same inputs once more: what is left is then the weights' alone.
        self.generator.set_state(state)
        pairs = zip(readings, self._read(clean_twin, subpath, amplitude, None, "the clean twin"), strict=True)
        left = ((a.site, orthogonal_to(a.d.double().numpy(), b.d.double().numpy())) for a, b in pairs)
        evidence.add(subpath, [Reading(site, torch.from_numpy(d)) for site, d in left])

    def read_wrong_masks(
        self, suspect: InstrumentedDenoiser, amplitude: float, through: Coordinates | None = None
    ) -> dict[str, np.ndarray]:
        """Responses to wrong masks, `(N, C)` by out-site.

        The masks are of the key's children: nobody else can prepare a suspect for them, and no response pattern is among what
        they are made of.
        """
        found: dict[str, list[torch.Tensor]] = {}
        for number in range(WRONG_INPUTS):
            subpath, inputs = draw(self.ins, self.outs, self.random), self._draw_inputs(suspect)
            children = [self.key.child(f"whiten/{number}/{row}") for row in range(WRONG_MASKS)]
            masks = {
                site.name: torch.from_numpy(np.stack([c.trigger_mask(site.name, site.width_out) for c in children]))
                for site in subpath.in_sites
            }
            self.evaluations += 1 + WRONG_MASKS
            with untestable_on_failure():
                rows = suspect.responses(masks, subpath.out_sites, self.record.kappa * amplitude, inputs, through)
            for name, d in rows.items():
                found.setdefault(name, []).append(d)
        return {name: torch.cat(rows).double().numpy() for name, rows in found.items()}

    def _read(
        self,
        denoiser: InstrumentedDenoiser,
        subpath: SubPath,
        amplitude: float,
        through: Coordinates | None,
        who: str = "the suspect",
    ) -> list[Reading]:
        """The readings of one sub-path, each of its out-sites once.

        Raises:
            RecordError: sites ran in another order than the record's layout says.
        """
        inputs = self._draw_inputs(denoiser)
        kappa, pairs = self.record.kappa * amplitude, self.record.pairs
        self.evaluations += 1 + (len(subpath.out_sites) if pairs else 1)
        with watch_order(denoiser.denoiser) as reached, untestable_on_failure(who):
            try:
                return read_subpath(denoiser, self.key, subpath, kappa, inputs, through, pairs=pairs)
            finally:
                # Also where it failed: a forward that ends before a site that the record puts earlier is the record's fault.
                check_order(self.record.layout or (), reached, attention_modules(denoiser.denoiser))

    def _draw_inputs(self, denoiser: InstrumentedDenoiser) -> CallInputs:
        """A noised row of the bank, its timestep and its conditioning, where the denoiser is."""
        record, generator = self.record, self.generator
        row = record.bank.take(torch.randint(len(record.bank), (1,), generator=generator))
        noise = torch.randn(row.latents.shape, generator=generator)
        t = torch.randint(*probe_timesteps(record.timesteps), (1,), generator=generator)
        device, dtype = placement(denoiser.denoiser)
        sample = record.noised(row.latents, noise, t).to(device, dtype)
        return CallInputs(sample, record.schedule.level(t).to(device), row.keywords(device, dtype))


def key_sites(
    denoiser: nn.Module, key: WatermarkKey, record: WatermarkRecord
) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """The in-sites and out-sites of `key` that this denoiser has.

    By the record's layout, without a forward: the key chooses among all sites, those missing here drop out by name, which
    depends on no response pattern, so p stays exact. A record without a layout needs every site and one traced forward.

    Raises:
        NotTestableError: fewer than `MIN_SHARE` of the key's in-sites or of its out-sites are there. The reason does not say how
            many: whoever publishes it would tell which of a suspect's changes met the key's sites.
        RecordError: the record counts more sites than its layout offers.
    """
    if record.layout is None:
        with untestable_on_failure():
            sites = trace_on(denoiser, record.bank)
        if len(sites) != record.sites:
            raise NotTestableError(f"the suspect has {len(sites)} attention sites, the record names {record.sites}.")
        return _choose(sites, key, record)
    ins, outs = _choose(record.layout, key, record)
    here = attention_modules(denoiser)
    found_ins, found_outs = (tuple(site for site in part if site.name in here) for part in (ins, outs))
    if len(found_ins) < MIN_SHARE * len(ins) or len(found_outs) < MIN_SHARE * len(outs):
        raise NotTestableError(
            f"the suspect has {len(here)} attention sites, the record lists {record.sites}, and too few of the key's in-sites "
            f"or out-sites are among them: at least {MIN_SHARE:.0%} of each are needed."
        )
    return found_ins, found_outs


def _choose(
    sites: Sequence[Site], key: WatermarkKey, record: WatermarkRecord
) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    if isinstance(key, LeafKey):
        return key.sites(list(sites))
    try:
        return choose(list(sites), key, record.in_sites, record.out_sites, record.silent)
    except ConfigError as error:
        raise RecordError(f"the record's counts do not fit its sites: {error}") from error


@contextmanager
def untestable_on_failure(who: str = "the suspect", inputs: str = "the record's probe inputs") -> Iterator[None]:
    """Turn what a denoiser raises on inputs that do not fit it into NotTestableError."""
    try:
        yield
    except ShapeError as error:
        # Without the error's words, which name a site of the key.
        raise NotTestableError(f"{who}'s sites have other numbers of channels than the record's.") from error
    except (AIAOError, torch.OutOfMemoryError):
        raise  # the latter tells of this machine, not of the suspect
    except UNFIT_ERRORS as error:
        raise NotTestableError(f"{who} does not take {inputs}: {error!r}") from error
