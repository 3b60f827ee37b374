"""AlignFed with the mean kept: `alignfed_literal.py` without the trap in Eq. 5.

    u_i = m_k + D_i                                               m_k is the mean of G_k
    T_k = argmin |f(W_t; D_c) - f(W_k + T(u_i); D_c)|^2           for groups older than t
    alpha_i ~ exp(-gamma tau_i) / sqrt(uploads_i + 1) / (max(|D_i|, 0.1 median |D|) + 1e-8), normalised
    W <- W + sum_i alpha_i T_k(u_i)

The paper's (arXiv 2606.08197): groups, alignment, the three weights. Ours: the mean, which is not taken
away; the floor under |D_i|; a group of one, whose D is zero, counts with the median |D| (at the floor it
weighed ten times as much as others, and simulated fleets went astray); the shape and fit of T.
"""

from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.method import Method
from coordinator.strategies.stages.align import Align
from coordinator.strategies.stages.centre import Centre
from coordinator.strategies.stages.norms import InverseNorm
from coordinator.strategies.stages.weights import ExponentialFreshness, Fairness, Normalise

METHOD = Method(
    pull=0.1,
    order=(Centre(), Align(), ExponentialFreshness(0.2), Fairness(), InverseNorm(0.1), Normalise()),
    merge=Sum(),
)
