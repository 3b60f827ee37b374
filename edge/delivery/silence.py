"""How long nobody has answered: a device that its fleet has not let in is answered by nothing at all.

A coordinator that answered strangers would work for them. So a device tells its owner by itself, once, after
a minute in which it asked and nothing came.
"""

import time
from collections.abc import Callable

AFTER_S = 60.0


class Silence:
    """The answers that one client waits for.

    Args:
        say: Called once where nothing was heard for `after_s` since the first unanswered question.
        clock: Seconds of any beginning.
        after_s: How long that is.
    """

    def __init__(
        self, say: Callable[[], object], clock: Callable[[], float] = time.monotonic, after_s: float = AFTER_S
    ) -> None:
        self._say = say
        self._clock = clock
        self._after_s = after_s
        self._since: float | None = None  # the first question that nothing has answered yet
        self._is_said = False

    def asked(self) -> None:
        """Notes a question, or the same once more."""
        now = self._clock()
        if self._since is None:
            self._since = now
        elif now - self._since >= self._after_s and not self._is_said:
            self._is_said = True
            self._say()

    def heard(self) -> None:
        """Notes that somebody has answered who has proved who it is."""
        self._since, self._is_said = None, False
