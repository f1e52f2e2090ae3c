"""Function-preserving disguises: rewrite a denoiser's weights so that every image stays and channel-wise marks do not.

Inside a `Transformer2DModel` everything between `proj_in` and `proj_out` may be written in other coordinates. With T the
map of the residual stream and M that of a LayerNorm's output, writers (`proj_in`, the attentions' `to_out`, the
feed-forward's last layer) become T W, the reader `proj_out` becomes W T^-1, and a LayerNorm's readers become W M^-1.
LayerNorm subtracts the mean over channels and divides by the deviation, so T must keep both up to the sign: an orthogonal
map that keeps the all-ones vector, plus anything that falls on the all-ones vector. Arbitrary signs on the residual
stream would move its mean; on a LayerNorm's *output* they are free, for its affine map and its readers absorb them.

| kind | residual stream | LayerNorm's output |
|---|---|---|
| permute | a permutation | the same permutation |
| flip | the sign of all channels together, or nothing | a sign and a factor in .5-2 for each channel |
| rotate | a random orthogonal map that keeps the all-ones vector | the same map, the affine folded into the readers |
| shear | a random functional of the channels added to all of them alike | nothing |

Kinds combine by calling `disguise` again. The result loads wherever the original loads: no shape and no config changes.
Other exact rewrites do not touch what AIAO reads (a processor's input) or moves (a processor's output) and are left out:
invertible maps inside a head between Q and K or between V and `to_out`, permuted heads, permuted feed-forward units, and
permuted channels of the residual blocks outside. A factor on the residual stream is exact up to LayerNorm's eps only, and
harmless: amplitudes are in units of the rms.

Source: our choice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from ...errors import ConfigError
from ..context import AttackContext
from ..registry import attack


Affine = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

SHEAR = 8.0


@dataclass(frozen=True)
class Change:
    """One change of coordinates: T, T^-1, and `(weight, bias) -> (weight', bias', M^-1)` of a LayerNorm; float64."""

    residual: torch.Tensor
    inverse: torch.Tensor
    norm: Affine


def permute(width: int, random: torch.Generator) -> Change:
    """A uniformly random permutation of the channels."""
    order = torch.randperm(width, generator=random)
    matrix = torch.eye(width, dtype=torch.float64)[order]
    return Change(matrix, matrix.T, lambda g, b: (g[order], b[order], matrix.T))


def flip(width: int, random: torch.Generator) -> Change:
    """Signs and factors on every LayerNorm output, fresh ones for each; the residual stream keeps or loses its sign."""
    sign = 1.0 - 2.0 * torch.randint(2, (), generator=random).double()

    def norm(g: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        factor = (1 - 2 * torch.randint(2, (width,), generator=random)) * 2 ** (
            2 * torch.rand(width, generator=random).double() - 1
        )
        return sign * factor * g, factor * b, torch.diag(1 / factor)

    residual = sign * torch.eye(width, dtype=torch.float64)
    return Change(residual, residual, norm)


def rotate(width: int, random: torch.Generator) -> Change:
    """A random orthogonal map that keeps the all-ones vector; LayerNorms become plain, their affine map moves on."""
    start = torch.randn(width, width, generator=random, dtype=torch.float64)
    start[:, 0] = 1.0
    basis = torch.linalg.qr(start).Q  # first column: the all-ones direction
    turn = torch.eye(width, dtype=torch.float64)
    turn[1:, 1:] = torch.linalg.qr(torch.randn(width - 1, width - 1, generator=random, dtype=torch.float64)).Q
    matrix = basis @ turn @ basis.T

    def norm(g: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.ones_like(g), matrix @ (b / g), g[:, None] * matrix.T

    return Change(matrix, matrix.T, norm)


def shear(width: int, random: torch.Generator) -> Change:
    """Add `<v, h>` to every channel, about `SHEAR` times as large as a channel: LayerNorm drops it, an rms does not."""
    v = torch.randn(width, generator=random, dtype=torch.float64)
    added = SHEAR * (v - v.mean())[None, :].expand(width, width) / width**0.5
    one = torch.eye(width, dtype=torch.float64)
    return Change(one + added, one - added, lambda g, b: (g, b, one))


KINDS: dict[str, Callable[[int, torch.Generator], Change]] = {
    "permute": permute,
    "flip": flip,
    "rotate": rotate,
    "shear": shear,
}


@torch.no_grad()
def disguise(denoiser: nn.Module, kind: str, *, seed: int = 0) -> nn.Module:
    """Change the coordinates of every transformer block of `denoiser`, in place; its output stays, to rounding.

    Args:
        kind (`str`): a key of `KINDS`, or several joined by `+`, applied in that order.
        seed (`int`): of the maps; each block gets its own.
    Raises:
        ConfigError: no such kind, or a block that is not of Stable Diffusion's plain form (adaptive norms, fused
            projections, adapters not fused); then nothing has been changed.
    """
    unknown = [name for name in kind.split("+") if name not in KINDS]
    if unknown:
        raise ConfigError(f"no disguise {unknown}: choose from {sorted(KINDS)}, or join several by '+'.")
    blocks = [m for m in denoiser.modules() if isinstance(m, Transformer2DModel)]
    if not blocks:
        raise ConfigError(f"{type(denoiser).__name__} has no Transformer2DModel: this attack does not apply.")
    for block in blocks:
        _check(block)
    random = torch.Generator().manual_seed(seed)
    for name in kind.split("+"):
        for block in blocks:
            _apply(block, KINDS[name](block.inner_dim, random))
    return denoiser


@attack("disguise")
def hidden(denoiser: nn.Module, context: AttackContext, *, kind: str = "rotate+flip+shear") -> nn.Module:
    """A function-preserving change of coordinates in every transformer block; reading it takes the clean twin."""
    return disguise(denoiser, kind, seed=context.seed)


def _apply(block: Any, change: Change) -> None:
    for writer in _writers(block):
        _set(writer.weight, change.residual @ _matrix(writer.weight))
        if writer.bias is not None:
            _set(writer.bias, change.residual @ writer.bias.double())
    for norm, readers in _norms(block):
        weight, bias, inverse = change.norm(norm.weight.double(), norm.bias.double())
        _set(norm.weight, weight)
        _set(norm.bias, bias)
        for reader in readers:
            _set(reader.weight, _matrix(reader.weight) @ inverse)
    _set(block.proj_out.weight, _matrix(block.proj_out.weight) @ change.inverse)


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    return weight.double().flatten(1)  # projections are linear or 1x1 convolutions


def _set(parameter: torch.Tensor, value: torch.Tensor) -> None:
    parameter.copy_(value.reshape(parameter.shape))


def _writers(block: Any) -> Iterator[Any]:
    yield block.proj_in
    for layer in block.transformer_blocks:
        yield layer.attn1.to_out[0]
        if layer.attn2 is not None:
            yield layer.attn2.to_out[0]
        yield layer.ff.net[-1]


def _norms(block: Any) -> Iterator[tuple[Any, list[Any]]]:
    for layer in block.transformer_blocks:
        for norm, attention in ((layer.norm1, layer.attn1), (layer.norm2, layer.attn2)):
            if attention is not None:
                own = [] if attention.is_cross_attention else [attention.to_k, attention.to_v]
                yield norm, [attention.to_q, *own]
        yield layer.norm3, [layer.ff.net[0].proj]


def _has_fused_projections(layer: Any) -> bool:
    return any(a is not None and a.fused_projections for a in (layer.attn1, layer.attn2))


def _check(block: Any) -> None:
    for layer in block.transformer_blocks:
        plain = isinstance(layer, BasicTransformerBlock) and layer.norm_type == "layer_norm"
        if not plain or layer.pos_embed is not None or hasattr(layer, "fuser") or _has_fused_projections(layer):
            raise ConfigError("this attack knows plain LayerNorm blocks without fused projections only.")
    projections = [*_writers(block), block.proj_out, *(reader for _, readers in _norms(block) for reader in readers)]
    odd = {type(p).__name__ for p in projections if type(p) not in (nn.Linear, nn.Conv2d)}
    if odd:
        raise ConfigError(f"projections of type {sorted(odd)} cannot be rewritten: fuse or unload adapters first.")
    if any(norm.weight is None or not (norm.weight != 0).all() for norm, _ in _norms(block)):
        raise ConfigError("a LayerNorm without weights, or with a zero among them, cannot be folded.")
