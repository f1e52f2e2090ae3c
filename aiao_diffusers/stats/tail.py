"""The exact upper tail of a sum of independent whole-numbered laws, deep into what floating point can hold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special


_TINY = 1e-300  # of a mass: what the FFT's rounding leaves of none at all may be negative


def log_binom(n: Any, k: Any) -> NDArray[np.float64]:
    """Natural log of the binomial coefficient, of numbers or arrays."""
    return np.asarray(special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1))


class Law(Protocol):
    """The law of one whole-numbered statistic, which can be tilted: P_tilted(t) is proportional to P(t) exp(theta t)."""

    def mean(self, theta: float) -> float:
        """Of the tilted law."""
        ...

    def spectrum(self, theta: float, size: int) -> tuple[NDArray[np.complex128], float]:
        """Real FFT of the tilted law on the integers modulo `size`, and the norm: P(t) = P_tilted(t) exp(norm - theta t)."""
        ...


@dataclass(frozen=True)
class Window:
    """The integers on which a sum is computed: `first` and the `count - 1` after it.

    Args:
        size (`int`): of the FFT, at least `count`; the sum's mass outside of a span of `size` must be negligible under the tilt.
    """

    first: int
    count: int
    size: int


def log_upper_tail(
    laws: Sequence[tuple[Law, int]],
    start: int,
    window: Window,
    *,
    steepest: float,
    step: float,
    clip: bool = False,
) -> float:
    """Natural log of P(sum >= start).

    Every law is tilted by exp(theta t), with theta such that the tilted sum has its mean at the tail's edge. Tilting
    commutes with convolution, so the convolution is done where the mass lies, by FFT, and the tilt is taken out of
    the tail sum afterwards. Untilted, a law of 1,280 channels (down to 1e-383) underflows, and FFT rounding buries
    whatever lies below 1e-16.

    Args:
        laws: each different law with how many of the summands have it.
        start (`int`): above the sum's smallest value, at most its largest; it lies in the window.
        window (`Window`): where to compute.
        steepest (`float`): |theta| at most; at it the tilted sum lies at an end of its range. A power of two.
        step (`float`): theta is a multiple of it. The identity holds at any theta; it only has to bring the mass near the edge. A
            power of two, so that laws that keep what they computed meet the same thetas again.
        clip (`bool`, defaults to False): set what rounding leaves below 0 to 0, as a window needs in which mass may wrap round.
            It moves the last digit, so a statistic keeps to one of both.

    Returns:
        `float`: may lie above 0 by rounding.

    Source: the tilting is Esscher's (Scandinavian Actuarial Journal, 1932); its computation by FFT is our choice.
    """

    def excess(theta: float) -> float:
        return sum(count * law.mean(theta) for law, count in laws) - (start - 0.5)

    low, high = -steepest, steepest
    while high - low > step:
        theta = (low + high) / 2
        low, high = (low, theta) if excess(theta) > 0 else (theta, high)
    spectrum = np.ones(window.size // 2 + 1, dtype=np.complex128)
    log_norm = 0.0
    for law, count in laws:
        part, norm = law.spectrum(theta, window.size)
        # A law conditioned on a rare event comes with little mass, whose power would underflow: 0.02 of it in 180 laws.
        mass_of_one = float(part[0].real)
        spectrum *= (part / mass_of_one) ** count
        log_norm += count * (norm + math.log(mass_of_one))
    # The FFT's first value is that of 0, or of any multiple of its size.
    mass = np.roll(fft.irfft(spectrum, window.size), -(window.first % window.size))[: window.count]
    offset = np.arange(window.count) + (window.first - start)

    # Sum on the side where removing the tilt shrinks the terms: on the other it would amplify the FFT's rounding.
    side = offset >= 0 if theta > 0 else offset < 0
    kept = mass[side].clip(min=0) if clip else mass[side]
    tail = float(kept @ np.exp(-theta * offset[side]))
    log_tail = log_norm - theta * start + math.log(max(tail, _TINY))
    return log_tail if theta > 0 else math.log1p(-min(math.exp(log_tail), 1 - 1e-16))
