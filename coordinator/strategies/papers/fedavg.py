"""FedAvg: synchronous rounds of a stated cohort (McMahan et al., arXiv 1602.05629; FedIT, arXiv 2305.05644).

    W <- W + eta * sum_k p_k * delta_k        p_k = n_k / sum n

The papers': the round, the weights by number of examples; FedIT averages the factors of LoRA, which is space
`factors` here. Ours: the server's learning rate (1 in the papers), space `product`, and a time budget after
which the round goes on with those who have answered. An update of an earlier round is rejected as too stale;
one that came while its round was being merged gets weight 0.
"""

from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.method import Method
from coordinator.strategies.stages.weights import Examples, Normalise

METHOD = Method(trigger="round", order=(Examples(), Normalise()), merge=Sum())
