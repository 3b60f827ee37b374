"""FedSA-LoRA: A is shared, every device keeps its own B (Guo et al., arXiv 2410.01463).

    A <- sum_k p_k A_k = A + sum_k p_k dA_k        p_k = n_k / sum n        B_k stays on device k

The paper's: both factors are trained, A is merged, B is not, because A is found to hold what is common and B
what is a device's own. It takes the plain mean of all devices of a round; p_k is ours, as are the buffer
instead of rounds (`[stages] trigger = "round"` gives the paper's) and increments added to an A that may have
moved on. The global adapter's B stays zero: it has no product of its own, its scores are those of the base
model, and only a device's A with its own B can be judged. So no stage that asks for the calibration set can
be used with it.
"""

from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.method import Method
from coordinator.strategies.stages.weights import Examples, Normalise

METHOD = Method(shared="a", order=(Examples(), Normalise()), merge=Sum())
