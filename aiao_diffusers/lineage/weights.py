"""Read the carrier from a denoiser's own weights, without a forward: does it descend from the marked model?

d of a site is the constant that its weights shift the activation by: the norm's bias, the modulation's chunk, the table's row, the
bias of the layer before; for values without a bias the part of their rows along the plane that the norm puts out. With a clean twin
it is what the suspect has more of than the twin. No d depends on the key, so p is exact for whatever was made without it.

Rank scores: where the carrier is faint they read deeper than hits (log10 p -68 for -47 on the example U-Net at strength 0.01); where it
is plain, both are below -800.

Source: our choice.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from ..denoiser.setup import Values, adapters
from ..denoiser.sites import unwrap
from ..errors import WrongBaseError
from ..mark.key import WatermarkKey
from ..stats.hits import count_hits, is_split
from ..stats.ranks import rank_log10_p, rank_site
from ..stats.sequential import SequentialTest
from .reading import LineageReading, check_test, site_tests, summarise
from .site import CarrierSite, direction
from .sites import plan_carrier


LOOK = "weights"
_OF_TWIN = (
    "what the suspect has more of than the clean twin was read: that is evidence where the twin was fixed before the key was, as a "
    "commitment with a beacon does; a twin that is made afterwards can hold the mark's opposite."
)


def read_lineage_in_weights(
    denoiser: nn.Module,
    key: WatermarkKey,
    *,
    clean_twin: nn.Module | None = None,
    alpha: float = 1e-6,
    factor: int = 1,
) -> LineageReading:
    """Do a denoiser's weights carry the key's directions? Zero forwards.

    Args:
        denoiser (`nn.Module`): a full model, on any device, offloaded or quantised; of adapters in it the base is read.
        key (`WatermarkKey`): the owner's; under scheme `aiao-2` drawn with the record's beacon.
        clean_twin (`nn.Module`, *optional*): the marked model before its mark, fixed before the key was: what both have is taken
            off. It reads deeper where the model's own constants are large beside the carrier's.
        alpha (`float`, defaults to 1e-6): chance of a false `verified`, in (0, 1).
        factor (`int`, defaults to 1): how many tests could have been shown in this one's place; p is multiplied by it.
    Returns:
        `LineageReading` of kind `weights`: `not_testable` for a denoiser without sites, or whose constants are all alike or not
        finite.
    Raises:
        ConfigError: alpha or factor out of range. WrongBaseError: the twin is of another architecture.
    """
    check_test(alpha, factor)
    plan = plan_carrier(unwrap(denoiser))
    told, used, found = len(plan.sites), [], []
    warnings = (*_describe_adapters(denoiser), *((_OF_TWIN,) if clean_twin is not None else ()))
    twin = None if clean_twin is None else _values(clean_twin)
    if twin is not None and clean_twin is not None and plan_carrier(unwrap(clean_twin)).sites != plan.sites:
        raise WrongBaseError(
            f"the clean twin is another model: {type(clean_twin).__name__} has other sites or widths."
        )
    values = _values(denoiser)
    for at, site in enumerate(plan.sites):
        norm = plan.sites[at - 1].shifted[0].module if at else ""
        d = constant_of(values, site, norm)
        if d is not None and twin is not None:
            other = constant_of(twin, site, norm, planes=values)
            d = None if other is None else d - other
        if d is not None and np.isfinite(d).all() and is_split(d):
            used.append(site)
            found.append(d)
    if not used:
        reason = f"none of its {told} carrier sites has a constant that tells channels apart"
        return LineageReading("not_testable", alpha, reason=reason, warnings=warnings, kind="weights")
    patterns = [direction(key, site) for site in used]
    log10_p = rank_log10_p([rank_site(d, v) for d, v in zip(found, patterns, strict=True)])
    test = SequentialTest(alpha=alpha, factor=factor).look(LOOK, trials=1, log10_p=log10_p)
    hits = [count_hits(d, v) for d, v in zip(found, patterns, strict=True)]
    return summarise(test, site_tests(used, hits), hits, share=len(used) / told, warnings=warnings, kind="weights")


def constant_of(
    values: Mapping[str, torch.Tensor],
    site: CarrierSite,
    norm: str,
    *,
    planes: Mapping[str, torch.Tensor] | None = None,
) -> np.ndarray | None:
    """What a denoiser's weights shift an activation by, `(width,)`; None where they lack it.

    Args:
        values: parameters by name.
        site (`CarrierSite`): of its plan.
        norm (`str`): the norm before the values of an `attention_output`.
        planes (*optional*): whose norms say what the tokens share, where not the denoiser's own: of two that are compared, one's.
    """
    if all(part.parameter in values for part in site.shifted):
        parts = [_wide(values[part.parameter]).reshape(part.of, -1)[part.number] for part in site.shifted]
        whole = parts[0] if len(parts) == 1 else torch.stack([part - part.mean() for part in parts]).sum(0)
        return np.asarray(whole)
    weight = f"{site.shifted[0].module}.weight"
    planes = values if planes is None else planes
    if (
        site.kind != "attention_output"
        or weight not in values
        or not {f"{norm}.weight", f"{norm}.bias"} <= planes.keys()
    ):
        return None
    # Every token x that the norm puts out has w.x = k, so k / |w|^2 w is the part that all tokens share.
    w = 1 / _wide(planes[f"{norm}.weight"])
    k = w @ _wide(planes[f"{norm}.bias"])
    return np.asarray(_wide(values[weight]).flatten(1) @ w * k / w.square().sum())


def _describe_adapters(denoiser: nn.Module) -> tuple[str, ...]:
    """A warning where what was read is not all that runs."""
    if not (active := adapters(unwrap(denoiser))):
        return ()
    return (
        f"the adapters {active} took no part: the weights below them were read, and their files answer for themselves.",
    )


def _values(denoiser: nn.Module) -> Mapping[str, torch.Tensor]:
    """A denoiser's parameters by name, below adapters and their like."""
    values = Values(unwrap(denoiser))
    return _Renamed(values, {name.replace(".base_layer.", "."): name for name in values})


class _Renamed(Mapping[str, torch.Tensor]):
    """Values under other names, each made when it is asked for."""

    def __init__(self, values: Mapping[str, torch.Tensor], names: dict[str, str]) -> None:
        self.values_of, self.names = values, names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.values_of[self.names[name]]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu().float().double()  # float8 knows no way to float64
