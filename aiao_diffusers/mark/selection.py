"""Which sites a key uses."""

from collections.abc import Collection

from ..denoiser.sites import Site
from ..errors import ConfigError
from .key import WatermarkKey


# In-sites come from the first, out-sites from the last part of the sites in order of execution (shares of their number).
# Early out-sites die under invariance fine-tuning, so the response is read late.
IN_SPAN = (0.0, 0.41)
OUT_SPAN = (0.63, 1.0)


def span(sites: list[Site], share: tuple[float, float]) -> list[Site]:
    """The sites whose order lies in this part of the denoiser."""
    return sites[round(share[0] * len(sites)) : round(share[1] * len(sites))]


def choose(
    sites: list[Site], key: WatermarkKey, in_count: int, out_count: int, silent: Collection[str] = ()
) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """The in-sites and out-sites that `key` selects, each in order of execution.

    Args:
        sites (`list[Site]`): all sites of the denoiser, from `trace`.
        in_count (`int`), out_count (`int`): how many of each; the record says so in public, the key says which.
        silent: names of sites that are no in-sites for any key, by the record (`loudness` 0).
    Raises:
        ConfigError: the denoiser has too few sites for these counts.
    Source: our choice.
    """
    result = []
    for label, share, count in (("in", IN_SPAN, in_count), ("out", OUT_SPAN, out_count)):
        candidates = [site for site in span(sites, share) if label == "out" or site.name not in silent]
        if not 1 <= count <= len(candidates):
            raise ConfigError(
                f"{count} {label}-sites asked for, this denoiser offers 1 to {len(candidates)} "
                f"({len(sites)} sites): lower `{label}_sites`."
            )
        chosen = key.shuffled(f"schedule/{label}", [site.name for site in candidates])[:count]
        result.append(tuple(site for site in candidates if site.name in chosen))
    return result[0], result[1]
