"""Space `factors`: increments of A and of B are added up, each in its own coordinates.

    A <- A + eta * sum_i w_i dA_i        B <- B + eta * sum_i w_i dB_i

Coordinates persist from version to version, as AlignFed needs them (arXiv 2606.08197, Eq. 8) and as FedIT
averages (arXiv 2305.05644). The sum of factors is not the factors' product: cross terms dB_i dA_j, i != j,
come in unasked. A device of lower rank holds the first rows of A and columns of B; its increments are padded
with zeros (HetLoRA, arXiv 2401.06432). Updates are loaded one at a time into a running sum.
"""

from collections.abc import Sequence

import numpy as np

from converters.adapter import Array, Factors, LoraAdapter
from coordinator.strategies.base import Contribution, State, Sum


def add_increments(
    state: State, buffer: Sequence[Contribution], weights: Sequence[float], server_lr: float
) -> Sum:
    """The state plus `server_lr` times the weighted sum of the buffer's increments."""
    steps = {name: (np.zeros_like(old.a), np.zeros_like(old.b)) for name, old in state.adapter}
    norms = []
    for one, weight in zip(buffer, weights, strict=True):
        delta = one.load_delta()
        norms.append(_norm([entry for _, change in delta for entry in (change.a, change.b)]))
        for name, change in delta:
            step_a, step_b = steps[name]
            step_a[: change.rank] += np.float32(weight) * change.a
            step_b[:, : change.rank] += np.float32(weight) * change.b
    eta = np.float32(server_lr)
    merged = {
        name: Factors(old.a + eta * steps[name][0], old.b + eta * steps[name][1], old.scale)
        for name, old in state.adapter
    }
    step_norm = abs(server_lr) * _norm([entry for step in steps.values() for entry in step])
    return Sum(LoraAdapter(merged), state.remainder, tuple(norms), step_norm)


def truncate_factors(adapter: LoraAdapter, rank: int) -> LoraAdapter:
    """The first `rank` rows of A and columns of B: what a device of lower rank trains on."""
    return LoraAdapter({name: Factors(old.a[:rank], old.b[:, :rank], old.scale) for name, old in adapter})


def _norm(arrays: Sequence[Array]) -> float:
    return float(np.sqrt(sum(float(np.vdot(array, array)) for array in arrays)))
