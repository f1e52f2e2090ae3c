"""Read with inputs of the judge's own, so that hardly anything of the claimant's record takes part.

Canonical reading: the judge's probes and their noise schedule in place of the record's bank and schedule; the suspect's own trace in
place of the record's layout; amplitude 1 at every site; no clean twin, no reference. What is left of the record says where to
read: how many in-sites and out-sites the key selects, which sites are silent (no in-sites for any key), and whether pairs of sites
have masks of their own. With another choice of sites an honest mark would not be found. Masks and response patterns
follow from the key alone, so p is exact if key, counts and silent sites were fixed before any ancestor of the suspect was public;
it does not matter what else the claimant wrote, or when.

Source: our choice.
"""

from pathlib import Path
from typing import Any

from torch import nn

from ..denoiser.inputs import fitting
from ..denoiser.probes import Probes
from ..denoiser.sites import trace_on
from ..errors import ConfigError, NotTestableError, RecordError
from ..mark.record import WatermarkRecord
from ..mark.selection import IN_SPAN, OUT_SPAN, span
from .evidence import untestable_on_failure


ASSUMES = (
    "the key was fixed before any ancestor of the suspect was public, and with it how many sites it selects and which are silent. "
    "Nothing else of the record takes part"
)


def open_probes(source: Any, clean_twin: Any, reference: Any) -> Probes | None:
    """The probes that a judge gives, as such or as a file.

    Raises:
        ConfigError: of another kind, or a clean twin or a reference was given too. DataError: no file of probes.
    """
    if source is None:
        return None
    given = [name for name, value in (("clean_twin", clean_twin), ("reference", reference)) if value is not None]
    if given:
        raise ConfigError(
            f"probes= (--probes) reads with nothing of the claimant's, and {given[0]}= (--{given[0].replace('_', '-')}) was given "
            "too: leave one of them out."
        )
    if isinstance(source, Probes):
        return source
    if not isinstance(source, str | Path):
        raise ConfigError(
            f"probes is what capture_probes or `aiao probe` made, or its file, got {type(source).__name__}."
        )
    return Probes.load(source)


def describe(probes: Probes | None) -> dict[str, Any] | None:
    """For the report."""
    return None if probes is None else {**probes.describe(), "assumes": ASSUMES}


def canonical_record(
    record: WatermarkRecord, probes: Probes, denoiser: nn.Module
) -> tuple[WatermarkRecord, tuple[str, ...]]:
    """What `denoiser` is read with in place of `record`, and words for the report; costs one forward.

    Raises:
        NotTestableError: the suspect does not take the probes, or has fewer sites than the key selects.
    """
    data = fitting(probes.data, denoiser)
    with untestable_on_failure(inputs="the judge's probes"):
        sites = trace_on(denoiser, data)
    silent = record.silent
    audible = [site for site in span(sites, IN_SPAN) if site.name not in silent]
    if len(audible) < record.in_sites or len(span(sites, OUT_SPAN)) < record.out_sites:
        raise NotTestableError(
            f"the suspect has {len(sites)} attention sites, too few for the {record.in_sites} in-sites and {record.out_sites} "
            "out-sites that the record counts."
        )
    fields: dict[str, Any] = {
        "bank": data,
        "scheduler": dict(probes.scheduler),
        "layout": tuple(sites),
        "sites": len(sites),
        "kappa": 1.0,
        "loudness": tuple(0.0 if site.name in silent else 1.0 for site in sites),
    }
    try:
        canonical = record.as_read(**fields)
    except RecordError as error:  # of the judge's scheduler, for all else was read here
        raise ConfigError(f"the noise schedule of the probes cannot be used: {error}") from error
    claimed = None if record.layout is None else [site.name for site in record.layout]
    if claimed is not None and claimed != [site.name for site in sites]:
        return canonical, (
            "the suspect's own sites are not those of the record's layout: the key selects among the suspect's, which may be "
            "others than the mark's.",
        )
    return canonical, ()
