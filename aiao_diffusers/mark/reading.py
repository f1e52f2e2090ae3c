"""Read one sub-path of an instrumented denoiser with a key's masks: the response of every out-site downstream."""

from dataclasses import dataclass

import torch

from ..denoiser.call import CallInputs
from ..denoiser.instrument import Coordinates, InstrumentedDenoiser
from .key import WatermarkKey
from .subpath import SubPath


@dataclass(frozen=True)
class Reading:
    """What one out-site answered: `d` is the response, `(C,)`, float32, CPU."""

    site: str
    d: torch.Tensor


def read_subpath(
    instrumented: InstrumentedDenoiser,
    key: WatermarkKey,
    subpath: SubPath,
    kappa: float,
    inputs: CallInputs,
    through: Coordinates | None = None,
    *,
    pairs: bool = False,
) -> list[Reading]:
    """One stacked forward, clean part and triggered part; the response of every out-site of `subpath`.

    Args:
        instrumented (`InstrumentedDenoiser`): from `instrument`, its sites those of the sub-path at least.
        key (`WatermarkKey`): whose masks are armed.
        subpath (`SubPath`): which in-sites are armed, which out-sites are read.
        kappa (`float`): trigger amplitude in units of the in-site's rms.
        inputs (`CallInputs`): noised latents, timesteps and conditioning of B rows.
        through (`Coordinates`, *optional*): an alignment; default: the sites are read as they are.
        pairs (`bool`, defaults to False): each out-site has masks of its own, in a triggered part of its own.
    Returns:
        `list[Reading]`: one an out-site, in order of execution.
    Raises:
        SiteError, ShapeError, NotTestableError: as `InstrumentedDenoiser.responses`.
    """
    asked = [site.name for site in subpath.out_sites] if pairs else None
    rows = {
        site.name: torch.from_numpy(key.trigger_masks(site.name, site.width_out, asked)) for site in subpath.in_sites
    }
    found = instrumented.responses(rows, subpath.out_sites, kappa, inputs, through)
    return [Reading(name, d[number if pairs else 0]) for number, (name, d) in enumerate(found.items())]
