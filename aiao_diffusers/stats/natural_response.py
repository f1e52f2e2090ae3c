"""Responses less what a model answers anyway: seen against wrong masks (`whiten`), or beyond the clean twin (`orthogonal_to`).

Any mask moves the out-sites, and most of what it moves lies in a few directions of the channels, the same ones for every mask.
Where an attack has worn a mark down, these natural responses drown it. They can be measured on the suspect itself, with masks
that belong to no one, and be weighed down: d' = (S + s I)^-1 (d - m), with m and S the mean and the covariance of the
responses to wrong masks, s the mean of S's eigenvalues. That is Fisher's linear discriminant with the covariance shrunk half
way towards a multiple of the identity.

Whoever has the clean twin knows them better still: as what the twin answers to the very same masks and inputs. Of a merge with
the twin they are a share of that; of a model that training has moved they are less of it, or none. So d gives up its part along the
twin's response, whatever that part is, and keeps what is at right angles to it.

Both transforms know suspect, twin and wrong masks, and no response pattern, so p-values of what is left are as exact as those of d.

Source: our choice.
"""

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError


MIN_ROWS = 2  # of wrong masks; fewer tell nothing of a covariance


def whiten(d: NDArray[np.float64], wrong: NDArray[np.float64]) -> NDArray[np.float64]:
    """d' of one out-site.

    Args:
        d (array, shape `(C,)`): the response, averaged over trials. wrong (array, shape `(N, C)`): responses to N wrong masks, in
            the same unit; of fewer than two rows d is returned as it is.
    Returns:
        array, shape `(C,)`, float64; its unit is of no consequence, for statistics look at order alone.
    Raises:
        ShapeError: the widths differ.
    """
    if wrong.ndim != 2 or d.shape != wrong.shape[1:]:
        raise ShapeError(
            f"d has shape {d.shape}, responses to wrong masks {wrong.shape}: they must be (C,) and (N, C)"
        )
    if len(wrong) < MIN_ROWS:
        return d
    away = wrong - wrong.mean(0)
    covariance = away.T @ away / len(wrong)
    ridge = float(np.trace(covariance)) / d.size
    if not ridge > 0:  # nothing moves under wrong masks: nothing to weigh down
        return d - wrong.mean(0)
    # In units of the ridge: squares of tiny responses would leave the range in which `solve` is sound.
    return np.linalg.solve(covariance / ridge + np.eye(d.size), d - wrong.mean(0))


def orthogonal_to(d: NDArray[np.float64], clean: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of one out-site's response at right angles to the clean twin's.

    Args:
        d, clean (arrays, shape `(C,)`): what suspect and twin answer to one mask on one input; where the twin answers nothing, d
            is returned as it is.
    Returns:
        array, shape `(C,)`, float64, in d's unit.
    Raises:
        ShapeError: the widths differ.
    """
    if d.shape != clean.shape:
        raise ShapeError(
            f"the suspect's response has shape {d.shape}, the twin's {clean.shape}: they must be the same"
        )
    square = float(clean @ clean)
    return d - clean * (float(d @ clean) / square) if square > 0 else d
