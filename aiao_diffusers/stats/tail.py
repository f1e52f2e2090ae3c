"""The exact upper tail of a sum of independent hit counts, deep into what floating point can hold."""

import math
from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, optimize, special


def log_binom(n: Any, k: Any) -> NDArray[np.float64]:
    return np.asarray(special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1))


@lru_cache(maxsize=64)
def log_pmf(channels: int, n: int) -> NDArray[np.float64]:
    """Natural log of the law of j, shape (n + 1,), read-only."""
    j = np.arange(n + 1)
    law = log_binom(n, j) + log_binom(channels - n, n - j) - log_binom(channels, n)
    law.setflags(write=False)
    return law


def log_upper_tail(kinds: Counter[tuple[int, int]], start: int) -> float:
    """Natural log of P(sum of j over all sites >= start).

    Every law is tilted by exp(theta j), with theta such that the tilted sum has its mean at the tail's edge. Tilting
    commutes with convolution, so the convolution is done where the mass lies, by FFT, and the tilt is taken out of
    the tail sum afterwards. Untilted, a law of 1,280 channels (down to 1e-383) underflows, and FFT rounding buries
    whatever lies below 1e-16.
    """
    top = sum(n * count for (_, n), count in kinds.items())
    if start <= 0:
        return 0.0
    if start > top:
        return -math.inf
    laws = [(log_pmf(channels, n), count) for (channels, n), count in kinds.items()]

    def tilted(theta: float) -> list[tuple[NDArray[np.float64], float, int]]:
        rows = []
        for law, count in laws:
            row = law + theta * np.arange(law.size)
            peak = float(row.max())
            mass = np.exp(row - peak)
            rows.append((mass / mass.sum(), peak + math.log(float(mass.sum())), count))
        return rows

    def excess(theta: float) -> float:
        means = sum(count * float(pmf @ np.arange(pmf.size)) for pmf, _, count in tilted(theta))
        return means - (start - 0.5)

    # At |theta| = 100 all mass is at an end: exp(100) exceeds sites x C^2 by far for any C that fits in memory.
    # The identity holds at any theta; it only has to bring the mass within a fraction of a deviation of the edge.
    theta = float(optimize.brentq(excess, -100, 100, xtol=1e-3))
    size = fft.next_fast_len(top + 1, real=True)
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    log_norm = 0.0
    for pmf, norm, count in tilted(theta):
        spectrum *= fft.rfft(pmf, size) ** count
        log_norm += count * norm
    law = fft.irfft(spectrum, size)[: top + 1]
    offset = np.arange(top + 1) - start

    # Sum on the side where removing the tilt shrinks the terms: on the other it would amplify the FFT's rounding.
    side = offset >= 0 if theta > 0 else offset < 0
    log_tail = log_norm - theta * start + math.log(float(law[side] @ np.exp(-theta * offset[side])))
    return log_tail if theta > 0 else math.log1p(-math.exp(log_tail))
