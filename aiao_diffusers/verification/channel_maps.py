"""Linear maps between two sets of activations of one site: signed permutations and rotations, chosen by a held-out fit.

Activations are `(N, T, C)`: inputs, tokens, channels; both sets are of the same inputs and places. Nothing here knows a key.
Source: our choice; Hungarian assignment from scipy, orthogonal Procrustes (Schoenemann 1966).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment


HELD_OUT = 4  # every fourth input is held out
# See `fit`: how much more of a map's error than of the richest map's is accepted. Rotated sites lie well above a
# permutation's limit, permuted ones below, but for sites of few live directions.
PARSIMONY = {"permutation": 3.5, "rotation": 1.2, "scaled rotation": 1.0}
ROUNDS = 10  # of a rotation in turn with its factors
RIDGES = (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e4)  # in units of the mean power of a channel; the last means no functional
TINY = 1e-12  # keeps a dead channel from dividing by zero

Solver = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class SiteMap:
    """A map between two bases: `target = source @ matrix.T + offset`.

    Args:
        kind (`str`): a key of `PARSIMONY`. matrix: `(C, C)`, float64; offset: `(C,)`.
        error (`float`): share of the target's variance that the map leaves unexplained on held-out inputs.
    """

    kind: str
    matrix: torch.Tensor
    offset: torch.Tensor
    error: float


def fit(source: torch.Tensor, target: torch.Tensor, *, scaled: bool = False) -> SiteMap:
    """The map from `source` to `target`: a permutation or a rotation.

    A rotation can always follow what embedding and fine-tuning changed as well, and is worse for it off the clean
    activations; so the simplest map is taken whose error is at most `PARSIMONY` times the richest one's. Ridge regression,
    tried and left out, has the smallest error of all and reads far worse: it follows the few directions in which clean
    activations vary and shrinks the rest, while a response lies in all of them.

    Args:
        scaled (`bool`): the source's channels may carry a factor each (a LayerNorm's output may) before the rotation.
    """
    x, y = source.double(), target.double()
    x_fit, y_fit, x_held, y_held = (v[rows].flatten(0, 1) for rows in _split(x) for v in (x, y))
    spread = (y_held - y_fit.mean(0)).square().sum().clamp(min=TINY)
    solvers: dict[str, Solver] = {"permutation": _permutation, "rotation": _rotation}
    if scaled:
        solvers["scaled rotation"] = _scaled_rotation
    errors = {}
    for kind, solve in solvers.items():
        matrix, offset = _affine(solve, x_fit, y_fit)
        errors[kind] = float((x_held @ matrix.T + offset - y_held).square().sum() / spread)
    richest = errors[list(solvers)[-1]]
    kind = next((k for k, error in errors.items() if error <= PARSIMONY[k] * richest), list(solvers)[-1])
    return SiteMap(kind, *_affine(solvers[kind], x.flatten(0, 1), y.flatten(0, 1)), errors[kind])


def fit_stream(source: torch.Tensor, target: torch.Tensor) -> SiteMap:
    """As `fit`, where only differences between channels can be compared: on a residual stream read through LayerNorm.

    LayerNorm drops the mean over channels, so a disguise may add there any functional of the channels. The map is fitted
    without that mean. The functional is then found on the target alone, where it is exact, by ridge regression of its mean
    (less the source's) on its channels, and added: what is pushed along the map must bring its own share of it.
    """
    found = fit(_centred(source), _centred(target))
    channels = _centred(target)
    added = target.double().mean(-1) - source.double().mean(-1)
    rows, held = _split(channels)
    errors = {}
    for ridge in RIDGES:
        w, constant = _functional(channels[rows], added[rows], ridge)
        errors[ridge] = float((channels[held] @ w + constant - added[held]).square().mean())
    w, constant = _functional(channels, added, min(errors, key=errors.__getitem__))
    matrix = found.matrix + (w @ found.matrix)[None, :]
    return SiteMap(found.kind, matrix, found.offset + constant + w @ found.offset, found.error)


def _split(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    held = torch.arange(len(v)) % HELD_OUT == HELD_OUT - 1
    return ~held, held


def _centred(v: torch.Tensor) -> torch.Tensor:
    return v.double() - v.double().mean(-1, keepdim=True)


def _functional(channels: torch.Tensor, value: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """w and constant with `value = channels @ w + constant`."""
    x, y = channels.flatten(0, 1), value.flatten()
    mean_x, mean_y = x.mean(0), y.mean()
    gram = (x - mean_x).T @ (x - mean_x)
    gram += ridge * gram.diagonal().mean().clamp(min=TINY) * torch.eye(len(gram), dtype=gram.dtype)
    w = torch.linalg.solve(gram, (x - mean_x).T @ (y - mean_y))
    return w, mean_y - mean_x @ w


def _affine(solve: Solver, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean_x, mean_y = x.mean(0), y.mean(0)
    matrix = solve(x - mean_x, y - mean_y)
    return matrix, mean_y - mean_x @ matrix.T


def _permutation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Signed permutation with a factor for each channel: the assignment with the largest sum of |correlations|."""
    sx, sy = (v.square().mean(0).sqrt().clamp(min=TINY) for v in (x, y))
    correlation = (y / sy).T @ (x / sx) / len(x)
    rows, columns = linear_sum_assignment(correlation.abs().numpy(), maximize=True)
    matrix = torch.zeros_like(correlation)
    sign = torch.where(correlation[rows, columns] < 0, -1.0, 1.0).double()
    matrix[rows, columns] = sign * sy[rows] / sx[columns]
    return matrix


def _rotation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Orthogonal Procrustes with one factor."""
    u, _, v = torch.linalg.svd(y.T @ x)
    return u @ v * (y.norm() / x.norm().clamp(min=TINY))


def _scaled_rotation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A factor for each source channel, then a rotation; in turn, each channel as strong as what it is turned into."""
    power = x.square().mean(0).clamp(min=TINY)
    factor = torch.ones_like(power)
    for _ in range(ROUNDS):
        turn = _rotation(x * factor, y)
        factor = ((y @ turn).square().mean(0) / power).sqrt()
    return _rotation(x * factor, y) * factor
