"""What the registry says of a family, and how its parts get weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn


Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Family:
    """One kind of pipeline at miniature size.

    Args:
        name: of the family, unique in the registry, in snake case.
        make: Makes the pipeline with random weights, the same at every call.
        options: the smallest keywords of a call, beside `prompt`, `num_inference_steps`, `generator` and `output_type`.
        video: whether its latents have frames.
        rows: of a pipeline without prompts, the options that have a row, or count one, for each of the first three.
        attributes: public attributes of the pipeline that bound its size and are in no file; `dress` one that was loaded.
        unloadable: why the stock class does not load what it saved, here; "" where it does.
        undrawable: why it stops at latents, here; "" where it draws.
    """

    name: str
    make: Callable[[], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    video: bool = False
    rows: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    unloadable: str = ""
    undrawable: str = ""

    @property
    def prompted(self) -> bool:
        return not self.rows

    def keywords(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What to call the pipeline with for `prompts`, or for as many rows, at most three, where it takes none."""
        if self.prompted:
            return {**self.options, "prompt": list(prompts)}
        count = len(prompts)
        given = {name: self.options[name] for name in self.rows}
        return {**self.options, **{n: count if isinstance(v, int) else v[:count] for n, v in given.items()}}

    def build(self) -> Any:
        """A pipeline ready to be called with `options`."""
        return self.dress(self.make())

    def dress(self, pipe: Any) -> Any:
        """The same pipeline, small in what its files do not say, and silent."""
        for name, value in self.attributes.items():
            getattr(pipe, name)  # else the pipeline would not read what is set
            setattr(pipe, name, value)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def seeded(make: Callable[..., Module], seed: int = 0, **config: Any) -> Module:
    """`make(**config)` with weights drawn from `seed`, in evaluation mode; the global generator stays where it was.

    Parameters that start out constant get noise: zero gates, modulations and last layers would hide the rest.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = make(**config).eval()
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.is_floating_point() and parameter.min() == parameter.max():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def transformer(make: Callable[..., Module], **config: Any) -> Module:
    """`seeded`, with linear layers that keep the size of what they are given.

    Torch draws them with a third of the variance that would; after a few layers little of the prompt would be left.
    """
    model = seeded(make, **config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(3**0.5)
    return model
