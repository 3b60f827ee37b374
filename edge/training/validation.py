"""Held-out data, scored while an adapter is trained on other data.

Scores change nothing of training: neither its numbers nor its time. Which steps are scored follows from the
plan and the data alone, so a run that is stopped and resumed has the same scores as one that was not.
"""

from collections.abc import Callable, Sequence

from edge.backends.contract import Model
from edge.errors import OutOfMemory
from edge.training.data.dataset import Dataset
from edge.training.plan import Plan
from edge.training.requests import Validation
from edge.training.scoring import score_dataset

NUM_SCORES = 10  # in a run, where nothing else is asked for


class Validator:
    """What is scored, and when.

    Args:
        dataset: Loaded for the plan's `seq_tokens`.
        plan: Of the training.
        every: Steps between two scores; 0 is about ten times in all, less often where that would take longer
            than the training.
        tell: Called with each score.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        *,
        every: int = 0,
        tell: Callable[[Validation], None] = lambda _: None,
    ) -> None:
        self.dataset, self.plan, self.every, self.tell = dataset, plan, every, tell
        tokens = sum(len(example.tokens) for example in dataset.examples)
        self.least_steps = -(-tokens // plan.batch_tokens)  # as many tokens trained on as scored

    def is_due(
        self, done: Sequence[Validation], step: int, seconds: float, num_steps: int, *, is_complete: bool
    ) -> bool:
        """Tells whether to score now.

        Args:
            done: The scores so far.
            step: Steps taken.
            seconds: Spent training.
            num_steps: Of the whole run; 0 is bounded by time.
            is_complete: It was the last step.
        """
        if not done:
            return True
        last = done[-1]
        if last.step == step or is_complete:
            return last.step != step
        if self.every:
            return step % self.every == 0

        def share(step: int, seconds: float) -> int:
            return int(NUM_SCORES * (step / num_steps if num_steps else seconds / self.plan.seconds))

        is_further = share(step, seconds) > share(last.step, last.seconds)
        return is_further and step - last.step >= self.least_steps

    def score(self, model: Model, step: int, seconds: float, micro_batch_tokens: int) -> Validation:
        """Scores with the model's present adapter, on smaller and smaller parts until they fit."""
        size = micro_batch_tokens or self.plan.batch_tokens
        while True:
            try:
                found = score_dataset(model, self.dataset, seq_tokens=self.plan.seq_tokens, batch_tokens=size)
                break
            except OutOfMemory:
                if size <= self.plan.seq_tokens:
                    raise
                size //= 2
        validation = Validation(step=step, seconds=seconds, evaluation=found)
        self.tell(validation)
        return validation
