"""What noise is worth: Gaussian differential privacy, and its epsilon at a given delta, in closed form.

A Gaussian mechanism of noise multiplier s (the noise's standard deviation over the largest change that one
unit can make) is mu-GDP with mu = 1/s. Mechanisms on the same data compose to mu = sqrt(sum mu_i^2), exactly
(Dong, Roth & Su, arXiv 1905.02383, Corollary 2), also where each was chosen after the one before was seen.
Epsilon and delta of mu are those of Balle & Wang (arXiv 1805.06530, Theorem 8):

    delta(eps) = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)

Computed as printed, the difference cancels and e^eps overflows. With x = eps/mu - mu/2, y = eps/mu + mu/2 and
Mills' ratio M(z) = Phi(-z)/phi(z), e^eps phi(y) = phi(x), and so delta = phi(x) (M(x) - M(y)): a logarithm
that holds down to delta = 1e-300 and beyond.

Units are compared by leaving one's contribution out (zero-out adjacency). Where a unit's data is replaced by
another's, both are twice as far apart, and mu doubles. Nothing here is made smaller by sampling: batches are
packed and shuffled, not drawn by Poisson, so amplification by subsampling has no proof to stand on.
"""

import math
from collections.abc import Iterable

_ROOT_TAU = math.sqrt(2 * math.pi)
_FAR = 6.0  # where Mills' ratio is taken from its continued fraction


def mu_of(noise: float, times: int = 1) -> float:
    """Returns mu of `times` Gaussian mechanisms of this noise multiplier together; infinite without noise."""
    if times == 0:
        return 0.0
    return math.sqrt(times) / noise if noise > 0 else math.inf


def compose(mus: Iterable[float]) -> float:
    """Returns mu of several mechanisms on the same data."""
    return math.sqrt(math.fsum(mu * mu for mu in mus))


def delta_of(mu: float, epsilon: float) -> float:
    """Returns the delta at which mu-GDP is (epsilon, delta)-differentially private."""
    if mu == math.inf:
        return 1.0
    return math.exp(_log_delta(mu, epsilon)) if mu > 0 else 0.0


def epsilon_of(mu: float, delta: float) -> float:
    """Returns the least epsilon at which mu-GDP is (epsilon, delta)-differentially private.

    It is found by bisection and rounded up, so that what is told is never too little.

    Args:
        mu: 0 is perfect privacy, infinity none.
        delta: Above 0 and below 1.
    """
    if mu == 0:
        return 0.0
    if mu == math.inf:
        return math.inf
    wanted = math.log(delta)
    if _log_delta(mu, 0.0) <= wanted:
        return 0.0
    low, high = (
        0.0,
        mu * mu / 2 + mu * math.sqrt(2 * -wanted) + 1.0,
    )  # delta <= exp(-x^2/2), x = eps/mu - mu/2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _log_delta(mu, middle) > wanted else (low, middle)
    return high


def noise_for(epsilon: float, delta: float, times: int = 1) -> float:
    """Returns the noise multiplier with which `times` mechanisms together cost `epsilon` at `delta`."""
    low, high = 1e-6, 1e6
    while high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon_of(mu_of(middle, times), delta) > epsilon else (low, middle)
    return high


def _log_delta(mu: float, epsilon: float) -> float:
    x, y = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    if x < -_FAR:  # delta is near 1, and nothing cancels
        return math.log(math.erfc(x / math.sqrt(2)) / 2 - _density(x) * _mills(y))
    difference = _mills(x) - _mills(y)
    if difference <= 0:  # nearer than a double can tell apart: by the slope of Mills' ratio instead
        difference = mu * (1 - x * _mills(x))
    return math.log(difference) - x * x / 2 - math.log(_ROOT_TAU)


def _density(z: float) -> float:
    return math.exp(-z * z / 2) / _ROOT_TAU


def _mills(z: float) -> float:
    """Computes Phi(-z) / phi(z) for z >= -6."""
    if z < _FAR:
        return math.erfc(z / math.sqrt(2)) / 2 / _density(z)
    fraction = z
    for k in range(60, 0, -1):  # Laplace's continued fraction; at z = 6 it ends in the last bit
        fraction = z + k / fraction
    return 1 / fraction
