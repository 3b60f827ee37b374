"""tunefleet's own strategy: fair by credit, in true products, as far as the calibration set lets it go.

    w_i = min(1/n + credit_i / mean L, 1)
    W <- re-projection of  W + 0.8 remainder + L sum_i w_i dW_i    L: the first of 4, 2, ... 1/8 to do no harm

Ours: credit (`stages/credit.py`), steps that begin beyond the merged one (`guard.py`), the space `product`
with its carried remainder (`merges/product.py`). Others': the cut of norms and the filter by the calibration
gradient (`stages/cosine.py`), by a mean over each device's updates, which is ours. What each part is worth,
and what was tried and left out, stands in `docs/strategy.md`.
"""

from coordinator.strategies.guard import Backtrack
from coordinator.strategies.merges.product import Product
from coordinator.strategies.method import Method
from coordinator.strategies.stages.clip import Clip
from coordinator.strategies.stages.cosine import Cosine
from coordinator.strategies.stages.credit import Credit

METHOD = Method(
    order=(
        Clip(2.0),
        Cosine(-0.05),  # at 0 honest devices with data of one kind were left out
        Credit(cap=1.0),
    ),
    merge=Product(carries=True, decay=0.8),
    guard=Backtrack(longest=4.0, tries=6),
)
