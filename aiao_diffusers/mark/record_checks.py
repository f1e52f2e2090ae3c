"""What a record may not say: whoever writes it must not choose how a suspect is read.

A record is written by the claimant, or copied by a suspect's publisher. A gain so small that nothing answers leaves the reading to
ties, a layout of another order leaves the choice of sites to its writer, and a tensor under the name of an inner argument goes
round the model's own input. Each of these is refused here.

Source: our choice.
"""

import inspect
from collections.abc import Collection, Sequence

from torch import nn

from ..denoiser.call import ROWS_OF
from ..denoiser.inputs import LatentData
from ..denoiser.sites import Site
from ..errors import RecordError
from ..files.text import short


MIN_GAIN = 1.0
"""Of a site that is no silent one: embedding makes weak sites louder and none quieter."""
ADDED_CONDITIONS = frozenset(
    {"aspect_ratio", "hint", "image", "image_embeds", "resolution", "text_embeds", "time_ids"}
)
"""Members of `added_cond_kwargs` that diffusers' denoisers know."""
_OWN_ARGUMENTS = frozenset({"hidden_states", "return_dict", "sample", "self", "timestep", "timesteps"})
_WAYS_IN = ("residual", "controlnet", "skip_layers", "_kwargs")
"""Parts of the names of arguments that reach into the denoiser, past its input."""


def is_gain(value: object, most: float) -> bool:
    """Whether a number may stand in a record's `loudness`: 0, or from `MIN_GAIN` to `most`."""
    return type(value) in (int, float) and (value == 0 or MIN_GAIN <= value <= most)  # type: ignore[operator]


def check_conditioning(bank: LatentData, denoiser: nn.Module) -> None:
    """The bank's conditioning is what this denoiser's forward takes from outside.

    Raises:
        RecordError: a tensor under a name that the forward does not have, or that reaches into the denoiser.
    """
    parameters = inspect.signature(denoiser.forward).parameters
    named = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    anything = len(named) < len(parameters)
    # What only the call reads: how many rows of a padded list count, and channels beside the sample.
    own = {f"{ROWS_OF}{name}" for name in bank.call.ragged} | set((bank.call.beside or ())[:1])
    for name in (name for name in bank.conditioning if name not in own):
        outer, _, inner = name.partition(".")
        if inner.isdecimal():
            right = (anything or outer in named) and not _is_way_in(outer)
        elif inner == "attention_mask" and outer.endswith("attention_kwargs"):
            right = anything or outer in named
        elif inner:
            right = outer == "added_cond_kwargs" and inner in ADDED_CONDITIONS and (anything or outer in named)
        else:
            right = (anything or outer in named) and not _is_way_in(outer)
        if not right:
            raise RecordError(
                f"the record's probe bank holds {short(name)}, which is no condition that a {type(denoiser).__name__} takes: "
                "it was altered, or is of another denoiser."
            )


def _is_way_in(name: str) -> bool:
    return name in _OWN_ARGUMENTS or any(part in name for part in _WAYS_IN)


def check_order(layout: Sequence[Site], reached: Sequence[str], present: Collection[str]) -> None:
    """The sites that a forward reached come in the order of the record's layout.

    Args:
        layout: the record's. reached: sites in the order in which a forward of the suspect came to them; it may have ended early.
        present: names of all sites of the suspect.
    Raises:
        RecordError: sites that both have come in another order, or one of them was passed by.
    """
    claimed = [site.name for site in layout if site.name in present]
    listed = set(claimed)
    seen = [name for name in reached if name in listed]
    if seen != claimed[: len(seen)]:
        raise RecordError(
            "the record's layout lists the suspect's attention sites in another order than that in which they run: it was "
            "altered, or is of another denoiser."
        )
