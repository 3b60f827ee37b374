"""Steps that hide every example: DP-SGD (Abadi et al., arXiv 1607.00133, Algorithm 1), with AdamW's step.

Each example's gradient is taken by itself, whatever the backend, and clipped; noise goes on their sum. What
is made of that sum afterwards (AdamW's moments, weight decay, the next step) tells nothing more. The sum is
divided by the number of the batch's examples, those without a label counted: leaving one's gradient out,
which is what the guarantee is about, does not change that number. Batches are packed, not drawn by Poisson,
so no amplification by sampling is claimed for them.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from converters.adapter import LoraAdapter
from converters.arithmetic import multiply, zeros_like
from converters.errors import AdapterError
from converters.masking import apply_mask
from edge.backends.contract import Batch, TrainableModel
from edge.errors import BackendError
from edge.privacy.clipping import clipped_sum, noised
from edge.privacy.noise import Draw
from edge.training.plan import Plan


class PrivateSteps:
    """The steps of one training.

    Args:
        model: Begun, without a bound on the whole gradient.
        plan: Says the bound on every example's gradient, and the noise.
        mask: 0 where an entry is not trained; None trains all.
        draw: Gives the noise's random bytes.
    """

    def __init__(self, model: TrainableModel, plan: Plan, mask: LoraAdapter | None, draw: Draw) -> None:
        self._model, self._plan, self._mask, self._draw = model, plan, mask, draw

    def step(self, examples: Sequence[Batch], lr: float) -> float:
        """Takes one step on examples of one batch.

        Returns:
            The loss before the step, as `TrainableModel.step` does. It is exact: nobody else may have it.

        Raises:
            OutOfMemory: One example did not fit; the adapter is unchanged.
        """
        losses: list[tuple[float, float]] = []
        total = clipped_sum(self._gradients(examples, losses), self._plan.example_clip_norm)
        deviation = self._plan.example_noise * self._plan.example_clip_norm
        hidden = noised(total, deviation, self._draw, self._mask)
        self._model.descend(multiply(hidden, 1 / len(examples)), lr)
        return sum(loss * weight for loss, weight in losses) / max(sum(weight for _, weight in losses), 1e-9)

    def _gradients(
        self, examples: Sequence[Batch], losses: list[tuple[float, float]]
    ) -> Iterator[LoraAdapter]:
        """Yields each example's gradient; a loss and its weight go to `losses`."""
        yield zeros_like(self._model.adapter())
        for example in examples:
            if weight := float(example.weights.sum()):  # without a label there is nothing to learn
                try:
                    loss, gradient = self._model.gradient([example])
                except AdapterError as error:
                    raise BackendError(f"training diverged: {error}; a lower lr may help") from error
                losses.append((loss, weight))
                yield apply_mask(gradient, self._mask)


def one_by_one(batch: Batch) -> list[Batch]:
    """Splits a batch into its examples."""
    return [batch.select(np.array([index])) for index in range(batch.num_examples)]
