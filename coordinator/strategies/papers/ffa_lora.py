"""FFA-LoRA: A is frozen, B is trained (Sun et al., arXiv 2403.12313).

    B <- sum_k p_k B_k = B + sum_k p_k dB_k        p_k = n_k / sum n        A is the one of version 0

The paper's: the frozen A, random and common to all (here from the fleet's seed), which makes the mean of
factors the mean of products, and halves what is sent. Ours: a buffer instead of rounds, so that increments
are added to a B that may have moved on; `[stages] trigger = "round"` gives the paper's rounds. Increments of
A that a device sends all the same are not merged (`sharing.py`).
"""

from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.method import Method
from coordinator.strategies.stages.weights import Examples, Normalise

METHOD = Method(shared="b", order=(Examples(), Normalise()), merge=Sum())
