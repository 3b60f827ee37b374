"""What an update may say of its own making: which attempt it is, and how much was trained.

Both are a device's word. An attempt counts once: of two updates for the same device, version and attempt the
first that is accepted counts. What was trained is bounded by what the recipe can have come to; where a device
says more, that bound is what counts, and its receipt says so.
"""

from typing import NamedTuple

from msgspec import structs

from coordinator.ledger.contract import Updates
from edge.errors import Rejected
from edge.protocol.messages import Recipe, UpdateHeader


class Making(NamedTuple):
    """What the recipe in force can come to.

    A recipe may have changed since a device began; an update that was trained by a longer one is then held
    to the shorter one's numbers, and its work counts all the same.
    """

    recipe: Recipe
    max_steps_per_s: float  # where the recipe bounds seconds

    @property
    def max_steps(self) -> int:
        """Returns the most optimizer steps of one task."""
        recipe = self.recipe
        return recipe.steps or int(recipe.seconds * self.max_steps_per_s) + 1

    @property
    def step_tokens(self) -> int:
        """Returns the most tokens of one step: a single row may be longer than a batch is meant to be."""
        return max(self.recipe.batch_tokens, self.recipe.seq_tokens)

    def bounded(self, header: UpdateHeader) -> tuple[UpdateHeader, str]:
        """Returns the header with numbers that can be, and what was changed in it, in words.

        An example has a token at least, and a step `step_tokens` at most.
        """
        steps = min(header.num_steps, self.max_steps)
        tokens = min(header.num_tokens, steps * self.step_tokens)
        numbers = {"num_steps": steps, "num_tokens": tokens, "num_examples": min(header.num_examples, tokens)}
        told = [
            f"{name} {getattr(header, name)} counts as {number}"
            for name, number in numbers.items()
            if getattr(header, name) != number
        ]
        if not told:
            return header, ""
        return structs.replace(header, **numbers), f"{', '.join(told)}: more the recipe cannot come to"


class Attempts:
    """Who has had which attempt at which version.

    Args:
        journal: Knows what was accepted.
        making: What the recipe allows.
    """

    def __init__(self, journal: Updates, making: Making) -> None:
        self._journal = journal
        self._making = making

    def bounded(self, header: UpdateHeader) -> tuple[UpdateHeader, str]:
        """Returns the header with numbers that can be; see `Making.bounded`."""
        return self._making.bounded(header)

    def check(self, header: UpdateHeader, under_way: str | None = None) -> None:
        """Checks that an update may be one for its attempt.

        Args:
            header: Of the update.
            under_way: The update that is being written down for this attempt, if one is.

        Raises:
            Rejected: `too-many-attempts` or `attempt-taken`.
        """
        allowed = self._making.recipe.attempts
        if 0 < allowed <= header.attempt:
            raise Rejected(
                "too-many-attempts",
                f"attempt {header.attempt} at version {header.base_version}, counted from 0, "
                f"expected at most {allowed - 1}",
            )
        counted = self._journal.counted(header.device_id, header.base_version, header.attempt)
        taken = counted or under_way
        if taken not in (None, header.update):
            raise Rejected(
                "attempt-taken",
                f"attempt {header.attempt} at version {header.base_version} is update {taken}'s, "
                "which counts already",
            )
