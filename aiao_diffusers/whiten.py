"""Whitened responses: a response seen against those that wrong masks call up.

Any mask moves the out-sites, and most of what it moves lies in a few directions of the channels, the same ones for every mask.
Where an attack has worn a mark down, these natural responses drown it. They can be measured on the suspect itself, with masks
that belong to no one, and be weighed down: d' = (S + s I)^-1 (d - m), with m and S the mean and the covariance of the
responses to wrong masks, s the mean of S's eigenvalues. That is Fisher's linear discriminant with the covariance shrunk half
way towards a multiple of the identity.

The transform knows the suspect and wrong masks, and no response pattern, so p-values of d' are as exact as those of d.

Source: our choice.
"""

import numpy as np
from numpy.typing import NDArray

from .errors import ShapeError


MIN_ROWS = 2  # of wrong masks; fewer tell nothing of a covariance


def whitened(d: NDArray[np.float64], wrong: NDArray[np.float64]) -> NDArray[np.float64]:
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
