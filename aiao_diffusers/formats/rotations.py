"""OFT and BOFT: adapters that turn a weight's rows (LyCORIS, sd-scripts) or its columns (peft) by orthogonal blocks.

A skew-symmetric block Q makes the rotation R by Cayley's transform, in two conventions: LyCORIS turns the outputs,
`R = (1 + Q)(1 - Q)^-1`; peft the inputs, `R = (1 - Q)(1 + Q)^-1`, by default a Neumann series of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt, prod

import torch

from ..errors import NotTestableError, SuspectError
from .adapter_keys import Group, fit


@dataclass(frozen=True)
class Cayley:
    """What peft's config says of an OFT.

    Args:
        terms: of the Neumann series; None for the exact transform.
    """

    terms: int | None = 5


def turn(group: Group, weight: torch.Tensor, scale: float, cayley: Cayley | None) -> torch.Tensor:
    """The weight under an OFT or BOFT.

    Args:
        group: its factors, in the precision of `weight`. weight: shape `(out, in, *kernel)`.
        scale: the user's multiplier; LyCORIS blends each rotation with the identity, peft has none.
        cayley: peft's config; needed for `oft_R` alone.
    Raises:
        WrongBaseError: blocks that do not fit the weight. SuspectError: a scale that peft does not have.
        NotTestableError: a butterfly of several factors in peft's form, which only peft's CUDA extension runs.
    """
    if "oft_blocks" in group.factors:
        return _turn_rows(group, weight, scale)
    if scale != 1:
        raise SuspectError(f"scale is {scale}, but an OFT of peft has none: leave it at 1")
    if "boft_R" in group.factors:
        return _turn_columns_boft(group, weight)
    return _turn_columns_oft(group, weight, cayley or Cayley())


def _eye(like: torch.Tensor) -> torch.Tensor:
    return torch.eye(like.shape[-1], device=like.device, dtype=like.dtype)


def _turn_rows(group: Group, weight: torch.Tensor, scale: float) -> torch.Tensor:
    blocks, shape = group.factors["oft_blocks"], tuple(weight.shape)
    size, rows = blocks.shape[-1] if blocks.dim() else 0, shape[0]
    square = blocks.dim() in (3, 4) and size >= 1 and blocks.shape[-2] == size
    fit(square and blocks.shape[-3] * size == rows, group, "oft_blocks", shape)
    q = blocks - blocks.transpose(-1, -2)
    if "alpha" in group.factors:
        norm, limit = q.norm() + 1e-8, group.factors["alpha"].reshape(()) * rows
        shrunk = q * (limit / norm).clamp(max=1)
        # LyCORIS reads a limit of 0 as none; sd-scripts, whose prefix is its own, as a limit.
        q = shrunk if group.layout == "sd-scripts" else torch.where(limit > 0, shrunk, q)
    turned = _eye(q) + scale * ((_eye(q) + q) @ torch.linalg.inv(_eye(q) - q) - _eye(q))
    if blocks.dim() == 3:
        value = torch.einsum("knm,kn...->km...", turned, weight.unflatten(0, (-1, size))).flatten(0, 1)
    else:
        value = _butterfly(group, weight, turned)
    if "rescale" in group.factors:
        rescale = group.factors["rescale"]
        fit(rescale.numel() == rows, group, "rescale", shape)
        value = value * rescale.reshape(-1, *[1] * (len(shape) - 1))
    return value


def _butterfly(group: Group, weight: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
    """LyCORIS's stages: stage i turns rows that lie `2^i * size / 2` apart."""
    stages, _, size, _ = turned.shape
    fit(
        stages <= 32 and size % 2 == 0 and len(weight) % (size << max(stages - 1, 0)) == 0,
        group,
        "oft_blocks",
        weight.shape,
    )
    for i in range(stages):
        apart = 2**i * size // 2
        weight = weight.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
        weight = torch.einsum("bij,bj...->bi...", turned[i], weight)
        weight = weight.flatten(0, 1).unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
    return weight


def _turn_columns(weight: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
    """`weight @ block_diag(turned).T` over its flattened columns; one block serves all where there is one."""
    columns = weight.flatten(1).unflatten(1, (-1, turned.shape[-1]))
    return torch.einsum("kij,okj->oki", turned.expand(columns.shape[1], -1, -1), columns).reshape(weight.shape)


def _turn_columns_oft(group: Group, weight: torch.Tensor, cayley: Cayley) -> torch.Tensor:
    vectors, columns = group.factors["oft_R"], prod(weight.shape[1:])
    fit(vectors.dim() == 2, group, "oft_R", weight.shape)
    if prod(weight.shape[2:]) > 1:
        raise NotTestableError(
            f"{group.module} is a convolution, on which peft's OFT runs otherwise than it merges: ask for the merged model"
        )
    size = (1 + isqrt(1 + 8 * vectors.shape[1])) // 2
    whole = size * (size - 1) // 2 == vectors.shape[1] and columns % size == 0
    fit(whole and vectors.shape[0] in (1, columns // size), group, "oft_R", weight.shape)
    rows, cols = torch.triu_indices(size, size, 1, device=vectors.device)
    upper = vectors.new_zeros(len(vectors), size, size)
    upper[:, rows, cols] = vectors
    return _turn_columns(weight, _cayley(upper - upper.transpose(1, 2), cayley.terms))


def _cayley(q: torch.Tensor, terms: int | None) -> torch.Tensor:
    """peft's rotation of skew-symmetric blocks, exact or by its series, whose last term counts once."""
    eye = _eye(q)
    if terms is None:
        return torch.linalg.solve(eye + q, eye - q, left=False)
    total, power = eye.expand_as(q).clone(), q
    if terms > 1:
        total = total + 2 * q
    if terms > 2:
        power = q @ q
        total = total + 2 * power
        for _ in range(3, terms - 1):
            power = power @ q
            total = total + 2 * power
        total = total + power @ q
    return total


def _turn_columns_boft(group: Group, weight: torch.Tensor) -> torch.Tensor:
    blocks, columns = group.factors["boft_R"], prod(weight.shape[1:])
    square = blocks.dim() == 4 and blocks.shape[-1] == blocks.shape[-2] >= 1
    fit(square and blocks.shape[1] * blocks.shape[-1] == columns, group, "boft_R", weight.shape)
    if blocks.shape[0] != 1:
        raise NotTestableError(
            f"{group.module} has a BOFT of {blocks.shape[0]} butterfly factors in peft's form, which is not read here: "
            f"ask for the merged model"
        )
    strength = group.factors["boft_s"]
    fit(strength.numel() == len(weight), group, "boft_s", weight.shape)
    turned = _cayley(0.5 * (blocks[0] - blocks[0].transpose(1, 2)), None)
    return _turn_columns(weight, turned) * strength.reshape(-1, *[1] * (weight.dim() - 1))


def cayley_of(config: Mapping[str, object], where: str) -> Cayley:
    """What decides peft's rotations, from its config; a field that it left out has peft's default.

    Raises:
        NotTestableError: COFT, whose last projection the file does not hold. SuspectError: a count that is none.
    """
    if config.get("coft"):
        raise NotTestableError(
            f"{where}: coft=True projects the blocks once more when it runs: merge it with peft first"
        )
    if not config.get("use_cayley_neumann", True):
        return Cayley(None)
    terms = config.get("num_cayley_neumann_terms", 5)
    if isinstance(terms, bool) or not isinstance(terms, int) or not 0 <= terms <= 64:
        raise SuspectError(f"{where}: num_cayley_neumann_terms is {terms!r}, expected a count up to 64")
    return Cayley(terms)
