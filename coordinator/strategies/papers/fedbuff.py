"""FedBuff: a buffer of asynchronous updates becomes a version (Nguyen et al., arXiv 2106.06639).

    W <- W + eta * (1/K) * sum_i s(tau_i) * delta_i        s(tau) = (1 + tau)^(-1/2)

The paper's: the buffer of K updates, the weight s, the server's learning rate eta. Ours: the time budget
after which a smaller buffer is merged (K is then what is there); staleness counted along the lineage, so
that a rollback makes no update older; and what W is: the adapter's product or its factors.
"""

from coordinator.strategies.merges.product import Product
from coordinator.strategies.method import Method
from coordinator.strategies.stages.weights import Freshness

METHOD = Method(order=(Freshness(0.5),), merge=Product())
