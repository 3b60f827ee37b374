"""FLoRA: devices' adapters are stacked, which adds up their products (Wang et al., arXiv 2409.05976).

    A_s = [p_1 A_1; ...; p_K A_K]        B_s = [B_1 ... B_K]        p_k = n_k / sum n
    B_s A_s = sum_k p_k B_k A_k
    W <- the best approximation, of the fleet's rank, of B_s A_s + what was carried

The paper's: the stack, with the weight on one factor only, of devices of any rank. There, clients add the
stack's product to their dense base model and begin anew. Ours: the base model is never changed, because in a
quantised one the update would vanish, and what is sent must not grow with K. So the stack is re-projected to
the fleet's rank, devices go on from there, and what the re-projection leaves over is carried to the next
version: nothing that was stacked is lost, up to `remainder_rank`. Until it enters the leading directions,
devices do not compute with it. Ours, too: a buffer instead of rounds; lower ranks get the leading singular
directions.
"""

from coordinator.strategies.merges.product import Product
from coordinator.strategies.method import Method
from coordinator.strategies.stages.absolute import Absolute
from coordinator.strategies.stages.weights import Examples, Normalise

METHOD = Method(order=(Absolute(), Examples(), Normalise()), merge=Product(decay=1.0))
