"""AlignFed exactly as printed (arXiv 2606.08197, Eq. 4 to 8), to show what the text says.

    G_k = {i : v_i = k}                                           Eq. 4
    D_i = delta_i - mean of G_k                                   Eq. 5
    T_k = argmin |f(W_t; D_c) - f(W_k + T(D_i); D_c)|^2           Eq. 6, for groups older than t
    alpha_i ~ exp(-gamma tau_i) / sqrt(uploads_i + 1) / (|D_i| + 1e-8), normalised over the buffer       Eq. 7
    W <- W + sum_i alpha_i T_k(D_i)                               Eq. 8

The paper's: all of this, and lambda |phi_i - phi_g|^2 in the devices' loss (Eq. 2 and 3), whose lambda is in
[0.1, 1] and whose gamma is in [0.1, 0.3]. Open in the paper, so ours: the buffer's size, how phi is pooled,
what T is and how it is fitted (see `stages/align.py`). The trap: Eq. 5 takes away the group's mean, which is
the direction in which its devices agree, and nothing adds it back. A group of one becomes zero, and its
weight in Eq. 7 is 1e8.
"""

from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.method import Method
from coordinator.strategies.stages.align import Align
from coordinator.strategies.stages.centre import CentreLiteral
from coordinator.strategies.stages.norms import InverseNormLiteral
from coordinator.strategies.stages.weights import ExponentialFreshness, Fairness, Normalise

METHOD = Method(
    pull=0.1,
    order=(
        CentreLiteral(),
        Align(),
        ExponentialFreshness(0.2),
        Fairness(),
        InverseNormLiteral(),
        Normalise(),
    ),
    merge=Sum(),
)
