"""How long a sender waits for an answer before it asks again: as long as answers take here, and some more.

RFC 6298, TCP's retransmission timer, for receipts: a smoothed time of the answers, plus four times how much
they vary. A fixed patience is wrong at both ends: a coordinator that needs longer under load is asked again
by everybody at once, which is more load, and where an answer takes milliseconds a message that was lost costs
ten seconds. What was asked twice measures nothing, since nobody knows which question was answered (Karn); the
longer wait that it led to stays in force until something is measured again.

Nothing here reads a clock; times are seconds.
"""

LEAST_S = 1.0  # an answer that is late by chance is not worth a question
MAX_BACKOFF = 8  # a silent coordinator is asked ever more rarely, up to this many times the first wait
GAIN, VARIATION_GAIN, NUM_VARIATIONS = 1 / 8, 1 / 4, 4  # RFC 6298, 2.3


class Patience:
    """The patience of one sender, over all that it sends.

    Args:
        first_s: Before anything was measured.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._smooth_s: float | None = None
        self._variation_s = 0.0
        self._backoff = 1

    @property
    def wait_s(self) -> float:
        """Returns how long to wait now."""
        return min(self._backoff * self._measured_s, self._most_s)

    def measure(self, took_s: float) -> None:
        """Takes the time of an answer to what was asked once."""
        self._backoff = 1
        if self._smooth_s is None:
            self._smooth_s, self._variation_s = took_s, took_s / 2
            return
        self._variation_s += VARIATION_GAIN * (abs(self._smooth_s - took_s) - self._variation_s)
        self._smooth_s += GAIN * (took_s - self._smooth_s)

    def wear(self) -> None:
        """Waits twice as long from now on: no answer came, or one that there is no room."""
        if self.wait_s < self._most_s:
            self._backoff *= 2

    def restore(self) -> None:
        """Waits no longer than what was measured: the other side is there."""
        self._backoff = 1

    @property
    def _most_s(self) -> float:
        return MAX_BACKOFF * self._first_s

    @property
    def _measured_s(self) -> float:
        if self._smooth_s is None:
            return self._first_s
        least_s = min(LEAST_S, self._first_s)
        return max(self._smooth_s + NUM_VARIATIONS * self._variation_s, least_s)
