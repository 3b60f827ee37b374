"""FlexLoRA: products are averaged, and cut to each device's rank by SVD (Bai et al., arXiv 2402.11505).

    dW = sum_k p_k s_k B_k A_k        p_k = n_k / sum n
    B A = the leading r directions of SVD(dW); devices of rank r_k get the leading r_k

The paper's: all of this; what lies behind the fleet's rank is dropped. Ours: the dense dW is never formed
(`converters.lowrank`), singular values are split evenly between both factors, the result is rotated toward
the version before, and a buffer stands in for rounds (`[stages] trigger = "round"` gives the paper's). It is
`flora.py` without the remainder.
"""

from coordinator.strategies.merges.product import Product
from coordinator.strategies.method import Method
from coordinator.strategies.stages.absolute import Absolute
from coordinator.strategies.stages.weights import Examples, Normalise

METHOD = Method(order=(Absolute(), Examples(), Normalise()), merge=Product(carries=False, decay=1.0))
