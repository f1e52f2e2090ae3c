"""What embedding changes, and the same model with that change switched off: the clean twin without a second copy.

Training holds weights, gradients and two moments. The clean twin runs while no gradient exists, so bringing the original
weights back from disk for its forward stays below the peak that ordinary training of the same parameters has anyway.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ..errors import ConfigError, TrainingError
from ..files.safetensors_header import read_header, stream


NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm)


class WeightChange(Protocol):
    """A change of a denoiser in the making."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name."""

    def original(self) -> AbstractContextManager[None]:
        """Within the block the denoiser is exactly what it was before; there must be no gradients worth keeping."""

    def undo(self) -> None:
        """Give the denoiser its original weights and modules back."""

    def shrink(self, share: float) -> None:
        """Keep this share of the change, between 0 and 1."""

    def merge(self) -> None:
        """Make the change part of the denoiser's own weights; `undo` takes full and lazy training back still."""

    def release(self) -> None:
        """The end: `undo` is of no use any more."""


class StoredWeights:
    """Trains the parameters themselves; their originals lie in a temporary safetensors file.

    Args:
        names: parameters to train, as in `named_parameters`; all others are frozen.
    Raises:
        TrainingError: the temporary folder (TMPDIR) cannot hold them.
    """

    def __init__(self, denoiser: nn.Module, names: Sequence[str]) -> None:
        own = dict(denoiser.named_parameters())
        self.parameters = {name: own[name] for name in names}
        self._folder = _make_folder()
        try:
            save_file({name: p.detach().contiguous() for name, p in self.parameters.items()}, self._file)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise _disk_error(self._folder.parent, error) from error
        self._header = read_header(self._file)
        for p in own.values():
            p.requires_grad_(False)
        for p in self.parameters.values():
            p.requires_grad_(True)

    @property
    def _file(self) -> Path:
        return self._folder / "original.safetensors"

    def originals(self) -> Iterator[tuple[str, nn.Parameter, torch.Tensor]]:
        """Name, trained parameter and its original, one at a time.

        Read, not mapped: mapped pages would stay resident, all of them, until the file is closed.
        """
        for name, original in stream(self._header):
            p = self.parameters[name]
            yield name, p, original.to(p.device)

    @contextmanager
    def original(self) -> Iterator[None]:
        """See `WeightChange`."""
        trained = {name: p.data for name, p in self.parameters.items()}
        try:
            for _, p, original in self.originals():
                p.data = original
            yield
        finally:
            # Swapped, not copied: the trained tensors come back bit for bit.
            for name, p in self.parameters.items():
                p.data = trained[name]

    @torch.no_grad()
    def undo(self) -> None:
        """See `WeightChange`."""
        for _, p, original in self.originals():
            p.copy_(original)
        self.release()

    @torch.no_grad()
    def shrink(self, share: float) -> None:
        """See `WeightChange`."""
        for _, p, original in self.originals() if share < 1 else ():
            p.lerp_(original, 1 - share)

    def merge(self) -> None:
        """See `WeightChange`: they are its own weights already."""

    def release(self) -> None:
        """See `WeightChange`."""
        shutil.rmtree(self._folder, ignore_errors=True)


class LowRank:
    """Trains a LoRA on every linear and convolution layer; switching it off gives the original, so nothing is stored.

    Args:
        rank (`int`): of the factors; alpha equals it.
    """

    def __init__(self, denoiser: nn.Module, rank: int) -> None:
        targets = [
            name
            for name, module in denoiser.named_modules()
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        ]
        self.denoiser = denoiser
        before = set(vars(denoiser))
        denoiser.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), denoiser)
        self._added = set(vars(denoiser)) - before
        self.layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
        self.parameters = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}

    @contextmanager
    def original(self) -> Iterator[None]:
        """See `WeightChange`."""
        try:
            for layer in self.layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in self.layers:
                layer.enable_adapters(True)

    def undo(self) -> None:
        """See `WeightChange`."""
        from diffusers.utils import recurse_remove_peft_layers

        for layer in self.layers:
            if layer.merged:
                layer.unmerge()
        recurse_remove_peft_layers(self.denoiser)
        for name in self._added:
            delattr(self.denoiser, name)
        self._added.clear()

    @torch.no_grad()
    def shrink(self, share: float) -> None:
        """See `WeightChange`."""
        for name, p in self.parameters.items():
            if ".lora_B." in name:
                p.mul_(share)

    def merge(self) -> None:
        """See `WeightChange`; when the factors are gone there is no way back."""
        for layer in self.layers:
            layer.merge()
        self.layers = []
        self.undo()

    def release(self) -> None:
        """See `WeightChange`: nothing was stored."""


def require_no_adapter(denoiser: nn.Module) -> None:
    """Raises ConfigError when adapter layers are attached: their base weights and factors would both be trained."""
    if any(isinstance(module, BaseTunerLayer) for module in denoiser.modules()):
        raise ConfigError("the denoiser carries an adapter: fuse it (fuse_lora) or take it off (unload_lora) first.")


def _make_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="aiao-original-"))
    except OSError as error:
        raise _disk_error(tempfile.tempdir, error) from error


def _disk_error(folder: object, error: Exception) -> TrainingError:
    return TrainingError(f"cannot keep the original weights in '{folder}' ({error}): free space or set TMPDIR.")
