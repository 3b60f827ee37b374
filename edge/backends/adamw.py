"""AdamW over one flat vector, in place and without temporary copies of its size but one.

Loshchilov & Hutter, arXiv 1711.05101, with bias correction, as `edge.backends.contract` fixes it.
"""

import numpy as np
from numpy.typing import NDArray

from edge.backends.contract import Snapshot

Array = NDArray[np.float32]
BETAS, EPSILON = (0.9, 0.999), 1e-8


class AdamW:
    """The optimizer of `values`, a flat vector that `step` changes.

    Args:
        values: The parameters.
        weight_decay: Shrinks them by lr * weight_decay a step.
        clip_norm: Bounds the gradient's l2 norm; 0 is off.
        is_trained: False where a value stays as it is, and its gradient counts as 0; None trains all.
    """

    def __init__(
        self,
        values: Array,
        weight_decay: float,
        clip_norm: float,
        is_trained: NDArray[np.bool_] | None = None,
    ) -> None:
        self.frozen = np.flatnonzero(~is_trained) if is_trained is not None else np.zeros(0, np.int64)
        self.values, self.weight_decay, self.clip_norm = values, weight_decay, clip_norm
        self.first, self.second = np.zeros_like(values), np.zeros_like(values)
        self.num_steps = 0

    def step(self, gradient: Array, lr: float) -> None:
        """Takes one step; `gradient` is used up."""
        gradient[self.frozen] = 0
        held = self.values[self.frozen]
        if self.clip_norm > 0:
            norm = float(np.sqrt(np.dot(gradient, gradient)))
            if norm > self.clip_norm:
                gradient *= np.float32(self.clip_norm / norm)
        self.num_steps += 1
        correction_1, correction_2 = (1 - beta**self.num_steps for beta in BETAS)
        self.first *= np.float32(BETAS[0])
        self.first += np.float32(1 - BETAS[0]) * gradient
        self.second *= np.float32(BETAS[1])
        gradient *= gradient
        gradient *= np.float32(1 - BETAS[1])
        self.second += gradient
        np.sqrt(self.second, out=gradient)
        gradient /= np.float32(correction_2**0.5)
        gradient += np.float32(EPSILON)
        np.divide(self.first, gradient, out=gradient)
        gradient *= np.float32(lr / correction_1)
        self.values *= np.float32(1 - lr * self.weight_decay)
        self.values -= gradient
        self.values[self.frozen] = held

    def snapshot(self) -> Snapshot:
        """Returns copies of both moments and the number of steps."""
        return {
            "first": self.first.copy(),
            "second": self.second.copy(),
            "num_steps": np.array(self.num_steps, np.int64),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Continues from what `snapshot` gave."""
        self.first[:], self.second[:] = snapshot["first"], snapshot["second"]
        self.num_steps = int(snapshot["num_steps"])
