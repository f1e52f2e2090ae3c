"""One change of a denoiser, and a format that it is written in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn


Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module -> (down, up); the change of its weight is `up @ down`, convolutions with their kernel in `down`."""
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Change:
    """A denoiser and what is done to it.

    Args:
        base: the denoiser before; never changed here. factors: the change, in float32.
        twin: another denoiser of its shape, whose weights lie beside where a format has such; default: the base at half.
    """

    base: nn.Module
    factors: Factors
    twin: nn.Module | None = None

    def delta(self, module: str) -> torch.Tensor:
        """The change of a module's weight, in its shape."""
        down, up = self.factors[module]
        return (up.flatten(1) @ down.flatten(1)).reshape(self.weight(module).shape)

    def weight(self, module: str) -> torch.Tensor:
        """A module's weight before the change."""
        value = self.base.get_submodule(module).weight
        assert isinstance(value, torch.Tensor)
        return value.detach()

    def merged(self) -> State:
        """The whole state after the change."""
        state = {name: tensor.clone() for name, tensor in self.base.state_dict().items()}
        for module in self.factors:
            state[f"{module}.weight"] += self.delta(module).to(state[f"{module}.weight"].dtype)
        return state

    def decoy(self) -> State:
        """Other weights of the same shapes, which must never be taken for those of `merged`."""
        if self.twin is not None:
            return {name: tensor.clone() for name, tensor in self.twin.state_dict().items()}
        return {name: tensor / 2 for name, tensor in self.base.state_dict().items()}

    def model(self, state: State) -> Any:
        """A denoiser of the base's class that holds `state`, with the inputs that its tensors ask for."""
        base: Any = self.base  # ModelMixin's config methods are untyped
        # Private fields say among others which values are the class's defaults, and those would come back.
        config = {name: value for name, value in base.config.items() if not name.startswith("_")}
        config["in_channels"] = state["conv_in.weight"].shape[1]
        if "time_embedding.cond_proj.weight" in state:
            config["time_cond_proj_dim"] = state["time_embedding.cond_proj.weight"].shape[1]
        model = type(base).from_config(config)
        model.load_state_dict(state)
        return model.eval()


@dataclass(frozen=True)
class Format:
    """A name for the table, a writer, and what the loader should make of it.

    Args:
        write: `(change, empty folder) -> what a user would pass`, a path or a model. kind: `Artifact.kind` expected, or an error's name.
        loads: whether it changes the denoiser. rounding: of its storage, as a share of the change's size.
        weight_name: the file meant, where the folder holds several. attention_only: it has no names for other modules.
        merge: what the file stands for by its own library, where that is not `change` itself.
        stock: what a stock library loads of that source, where one does. oracle: who says what the weights are: `patched`
            by hand, or the library behind `merge` or `stock`.
    """

    name: str
    write: Callable[[Change, Path], Any]
    kind: str = "lora"
    loads: bool = True
    rounding: float = 1e-4
    weight_name: str | None = None
    attention_only: bool = False
    merge: Callable[[Change], State] | None = None
    stock: Callable[[Change, Path], nn.Module] | None = None
    oracle: str = "patched"

    def merged(self, change: Change) -> State:
        """The denoiser's state that this format's file stands for."""
        if self.merge is not None:
            return self.merge(change)
        return Change(change.base, {m: change.factors[m] for m in self.modules(change)}).merged()

    def modules(self, change: Change) -> tuple[str, ...]:
        """Those of the change's modules that this format can hold."""
        return tuple(m for m in change.factors if not self.attention_only or ".to_" in m)


def save(path: Path, state: State, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path, metadata or {"format": "pt"})
    return path
