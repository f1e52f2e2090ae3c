"""Read a mark through a change of coordinates: the answer to function-preserving disguises.

Per site a linear map between the suspect's clean activations and reference activations, on the same inputs, is estimated;
triggers are applied and responses read through it.

Why p stays exact. It is exact whenever the response patterns are independent of whatever d was read with (`statistics`,
assumption 2). Here d = A d', where d' is the suspect's own response and the map A follows from the suspect's *clean*
activations (no trigger armed, no key used) and the reference. So the reference must not know the key: it comes from the
clean teacher, taken before embedding starts. Activations of the marked model would not do: its weights follow the response
patterns, and a map fitted to them can carry the patterns into the reading of *any* suspect. Which map is taken at a site is
decided by a held-out fit to clean activations as well.
That argument binds an honest owner only. Who makes a reference *with* the key in mind (activations that vary along his
response patterns) can pull any suspect towards them. Hence the record, published before the suspect appears, names the
hashes of reference and clean twin; a judge asks for the twin, checks its hash, makes the reference anew by `observe`, and
looks at the controls, where unrelated models are read through the same reference.

Why the reference stays private. Only a holder of the key can use it, so publishing it helps no one else. It would hand an
attacker the targets that undo, site by site, what embedding did to the clean activations, and the difference between
marked and clean activations to search for the response patterns in (a first search finds nothing: docs/disguises.md), and
let him recognise the clean twin. So `embed` returns it; the owner keeps it beside the key or, which is as good, keeps the
clean twin and passes that. The record works without either: then the alignment looks are left out, and the report says so.

Source: our choice. How the maps are fitted is in `maps`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..denoiser.sites import Site, unwrap
from ..denoiser.trigger import channel_axis
from ..errors import NotTestableError
from .channel_maps import TINY, SiteMap, fit, fit_stream
from .evidence import untestable_on_failure
from .reference import Reference, capture_activations


@dataclass(frozen=True)
class Alignment:
    """Maps of a suspect's sites: at in-sites from the reference to the suspect, at out-sites back; `probe.Coordinates`.

    Args:
        ins, outs: by site name.
        gain: what a unit of the suspect's rms at an in-site is in the reference's, so that amplitudes keep their meaning.
    """

    ins: Mapping[str, SiteMap]
    outs: Mapping[str, SiteMap]
    gain: Mapping[str, float]

    def mask(self, site: str, mask: torch.Tensor) -> torch.Tensor:
        """B m, in the suspect's basis and units; `(C,)`, float32."""
        return (self.ins[site].matrix @ mask.double() * self.gain[site]).float()

    def hidden(self, site: str, hidden_states: torch.Tensor) -> torch.Tensor:
        """A h + c, in the reference's basis; shape kept, float32."""
        found, axis = self.outs[site], channel_axis(hidden_states)
        matrix, offset = (v.float().to(hidden_states.device) for v in (found.matrix, found.offset))
        return (hidden_states.float().movedim(axis, -1) @ matrix.T + offset).movedim(-1, axis)

    def summary(self) -> dict[str, Any]:
        """For the report: how many sites got each kind of map, and `worst_error`, the largest held-out error."""
        maps = [*self.ins.values(), *self.outs.values()]
        return {**Counter(m.kind for m in maps), "worst_error": round(max(m.error for m in maps), 4)}


def align(reference: Reference, denoiser: nn.Module, ins: Sequence[Site], outs: Sequence[Site]) -> Alignment:
    """Estimate the maps of a suspect; no key takes part, `ins` and `outs` only say which maps are wanted.

    Raises:
        NotTestableError: the reference does not have these sites, or with another width or resolution, or the suspect does not
            take its inputs.
    """
    if any(s.name not in reference.leaving for s in ins) or any(s.name not in reference.entering for s in outs):
        raise NotTestableError("the reference has no activations of the key's sites: it is of another architecture.")
    with untestable_on_failure():
        left, entered = capture_activations(
            unwrap(denoiser),
            reference.inputs,
            reference.timesteps,
            {s.name: reference.leaving[s.name].shape[1] for s in ins},
            {s.name: reference.entering[s.name].shape[1] for s in outs},
        )
    pairs = [(v, reference.leaving[n]) for n, v in left.items()] + [
        (v, reference.entering[n]) for n, v in entered.items()
    ]
    if any(a.shape != b.shape for a, b in pairs):
        raise NotTestableError("the suspect's sites have another width or resolution than the reference's.")
    if not all(torch.isfinite(a).all() for a, _ in pairs):
        raise NotTestableError("the suspect's activations on the reference's inputs are not finite.")
    return Alignment(
        {s.name: fit_stream(reference.leaving[s.name], left[s.name]) for s in ins},
        {s.name: fit(entered[s.name], reference.entering[s.name], scaled=True) for s in outs},
        {s.name: _power(reference.leaving[s.name]) / max(_power(left[s.name]), TINY) for s in ins},
    )


def _power(v: torch.Tensor) -> float:
    return float(v.float().square().mean((1, 2)).sqrt().mean())
