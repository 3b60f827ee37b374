"""HetLoRA: adapters of many ranks, padded with zeros and weighed by norm (Cho et al., arXiv 2401.06432).

    A <- sum_k p_k pad(A_k)        B <- sum_k p_k pad(B_k)        p_k = |B_k A_k|_F / sum_j |B_j A_j|_F

The paper's: devices of rank r_k get the first r_k rows of A and columns of B, and send them back; they are
padded with zeros to the fleet's rank; adapters that hold more weigh more. So the rows that devices of low
rank have not shrink with their weight. Left out: the paper's self-pruning, where a penalty on the last rows
lets a device lower its own rank; tiers are fixed here. Ours: a buffer instead of rounds
(`[stages] trigger = "round"` gives the paper's); |B_k A_k| is taken over all modules together, one weight
for each device.
"""

from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.method import Method
from coordinator.strategies.stages.absolute import Absolute
from coordinator.strategies.stages.norms import ProductNorm
from coordinator.strategies.stages.weights import Normalise

METHOD = Method(order=(Absolute(), ProductNorm(), Normalise()), merge=Sum())
