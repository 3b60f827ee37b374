"""FedEx-LoRA: the mean of factors, and what it misses beside it (Singhal et al., arXiv 2410.09432).

    A' = A + sum_k p_k dA_k        B' = B + sum_k p_k dB_k        p_k = n_k / sum n
    R <- R + sum_k p_k B_k A_k - B'A'        W = W_0 + R + B'A'

The paper's: the residual, which makes the mean exact, added to the dense base model, whose type must be able
to hold it: refused on a quantised base. Weights are equal there. Ours: p_k; R is not put into the base but
carried as factors of rank `remainder_rank`, behind the adapter's own rows and frozen (`tiers.py`), so that
devices compute with it and the base stays what its fingerprint says; what the cap on its rank loses is
reported with the version. Ours, too: a buffer instead of rounds (`[stages] trigger = "round"` gives the
paper's), for which R is written in true changes (`merges/residual.py`): an old update adds what it changed,
exactly. All devices have one rank, as in the paper.
"""

from coordinator.strategies.merges.residual import Residual
from coordinator.strategies.method import Method
from coordinator.strategies.stages.weights import Examples, Normalise

METHOD = Method(order=(Examples(), Normalise()), merge=Residual())
