"""FedAsync: every update is mixed in as it comes (Xie, Koyejo & Gupta, arXiv 1903.03934).

    W <- (1 - a_t) W + a_t W_i        a_t = alpha * s(tau)

    constant      s = 1
    polynomial    s = (1 + tau)^(-1/2)
    hinge         s = 1 for tau <= 4, then 1 / (10 (tau - 4) + 1)

The paper's: all of this; the stage `freshness` is its second s, `freshness-hinge` its third, and none its
first. The same is W <- W + a_t (W_i - W): the stages `absolute`, `freshness` and `mix`. Ours: what W is, the
factors A and B; their rows that a device of lower rank has not are zero in its W_i. alpha is 0.6 as in public
implementations; it was not read in the paper's own text. The paper's proximal term on the devices is left
out. The server's learning rate multiplies alpha.
"""

from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.method import Method
from coordinator.strategies.stages.absolute import Absolute
from coordinator.strategies.stages.weights import Freshness, Mix

METHOD = Method(trigger="arrival", order=(Absolute(), Freshness(0.5), Mix(0.6)), merge=Sum())
