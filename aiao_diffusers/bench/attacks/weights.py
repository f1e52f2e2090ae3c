"""Attacks on the weights alone, without data: rounding, pruning, noise, rank cuts, fresh layers."""

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from ...errors import ConfigError
from ..context import AttackContext
from ..registry import attack


def matrices(denoiser: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The linear and convolution layers: what quantisers, pruners and rank cuts act on."""
    return [m for m in denoiser.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@attack("none")
def none(denoiser: nn.Module, context: AttackContext) -> nn.Module:
    """Nothing: the marked model as published."""
    return denoiser


@attack("cast")
def cast(denoiser: nn.Module, context: AttackContext, *, dtype: str = "float16") -> nn.Module:
    """Stored in half precision (`float16` or `bfloat16`) and loaded again."""
    if dtype not in ("float16", "bfloat16"):
        raise ConfigError(f"dtype '{dtype}' is none of float16, bfloat16.")
    return denoiser.to(getattr(torch, dtype)).float()


@attack("quantise", strength="bits")
@torch.no_grad()
def quantise(denoiser: nn.Module, context: AttackContext, *, bits: int = 8) -> nn.Module:
    """Weights rounded to `bits`, symmetric, one scale an output channel, to nearest."""
    if not 2 <= bits <= 16:
        raise ConfigError(f"bits must be 2 to 16, got {bits}.")
    top = 2 ** (bits - 1) - 1
    for layer in matrices(denoiser):
        weight = layer.weight.data
        step = weight.abs().flatten(1).amax(1).clamp(min=1e-12).view(-1, *[1] * (weight.ndim - 1)) / top
        layer.weight.data = (weight / step).round().clamp(-top, top) * step
    return denoiser


@attack("prune", strength="amount")
def prune(denoiser: nn.Module, context: AttackContext, *, amount: float = 0.3, structured: bool = False) -> nn.Module:
    """The smallest share `amount` of each layer's weights set to zero; structured: of its output channels, by norm."""
    if not 0 <= amount < 1:
        raise ConfigError(f"amount must be in [0, 1), got {amount}.")
    for layer in matrices(denoiser):
        if structured:
            torch_prune.ln_structured(layer, "weight", amount, n=2, dim=0)
        else:
            torch_prune.l1_unstructured(layer, "weight", amount)
        torch_prune.remove(layer, "weight")
    return denoiser


@attack("noise", strength="std")
@torch.no_grad()
def noise(denoiser: nn.Module, context: AttackContext, *, std: float = 0.1) -> nn.Module:
    """Gaussian noise on every weight tensor, `std` in units of the tensor's own standard deviation."""
    generator = context.generator
    for weight in denoiser.parameters():
        if weight.numel() > 1:
            fresh = torch.randn(weight.shape, generator=generator).to(weight)
            weight.add_(fresh * std * weight.std())
    return denoiser


@attack("svd", strength="keep")
@torch.no_grad()
def svd(denoiser: nn.Module, context: AttackContext, *, keep: float = 0.5) -> nn.Module:
    """Each layer cut to the share `keep` of its singular values, the largest; kernels flattened to a matrix."""
    if not 0 < keep <= 1:
        raise ConfigError(f"keep must be in (0, 1], got {keep}.")
    for layer in matrices(denoiser):
        flat = layer.weight.data.flatten(1)
        u, s, v = torch.linalg.svd(flat, full_matrices=False)
        rank = max(1, round(keep * len(s)))
        layer.weight.data = ((u[:, :rank] * s[:rank]) @ v[:rank]).view_as(layer.weight.data)
    return denoiser


@attack("reinit")
def reinit(denoiser: nn.Module, context: AttackContext, *, block: str = "mid_block") -> nn.Module:
    """The layers of one block (a name as in `named_modules`) initialised afresh."""
    names = dict(denoiser.named_modules())
    if block not in names:
        raise ConfigError(f"no block '{block}'; the denoiser has {[n for n in names if n.count('.') < 2][:12]}.")
    layers = [layer for layer in names[block].modules() if hasattr(layer, "reset_parameters")]
    if not layers:
        raise ConfigError(f"block '{block}' has no weights to initialise: name one that holds layers.")
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        for layer in layers:
            layer.reset_parameters()
    return denoiser
