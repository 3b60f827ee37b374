"""Gaussian noise from the system's own random generator.

A pseudo-random generator would do for statistics and not here: entries that no training moved show the noise
itself, and from some hundreds of outputs of a generator that was not made for secrets its state can be
computed, and with it all the rest. So every number comes from `os.urandom`, 8 bytes each, and is made normal
by Box and Muller (1958). Uniforms have 53 bits, so no number is beyond 8.6 standard deviations, which each
would be once in 1e17.

Sums are rounded to a grid of 2^-16 of the standard deviation. Without that, the low bits of a float tell
which value the noise was added to (Mironov, CCS 2012): doubles that are x plus a possible noise differ from
x to x. On the grid each point is met by millions of them.
"""

import math
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Draw = Callable[[int], bytes]  # that many random bytes
SYSTEM: Draw = os.urandom
GRID_BITS = 16


def draw_normal(count: int, draw: Draw) -> NDArray[np.float64]:
    """Draws `count` standard normal numbers."""
    pairs = -(-count // 2)
    bits = np.frombuffer(draw(16 * pairs), np.uint64) >> np.uint64(11)
    uniform = bits.astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2 * np.log1p(-uniform[:pairs]))  # of 1 - u, which is never 0
    angle = 2 * math.pi * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def add_noise(values: NDArray[np.float64], deviation: float, draw: Draw) -> NDArray[np.float64]:
    """Adds noise of a standard deviation to every value, and rounds the sums to the grid."""
    if deviation == 0:
        return values
    step = 2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS)
    noised: NDArray[np.float64] = values + deviation * draw_normal(values.size, draw).reshape(values.shape)
    return np.rint(noised / step) * step
