"""LoRA-FAIR: the mean of factors with B corrected for what it misses (Bian et al., arXiv 2411.14961).

    A' = sum_k p_k A_k        B' = sum_k p_k B_k        dW = sum_k p_k B_k A_k        p_k = n_k / sum n
    dB = (dW - B'A') A'^T (A'A'^T + mu I)^-1
    A <- A'        B <- B' + dB

The paper's: the corrected B, and devices that go on from A' and B' + dB. Its dB brings (B' + dB) A' near to
dW under a penalty on dB. Ours: the squared distance, whose minimum is the closed form above, dW as a stack
that is never dense, and mu relative to A' (`merges/fair.py`); a buffer instead of rounds (`[stages] trigger =
"round"` gives the paper's). All devices have one rank.
"""

from coordinator.strategies.merges.fair import Fair
from coordinator.strategies.method import Method
from coordinator.strategies.stages.absolute import Absolute
from coordinator.strategies.stages.weights import Examples, Normalise

METHOD = Method(order=(Absolute(), Examples(), Normalise()), merge=Fair())
