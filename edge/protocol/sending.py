"""A payload on its way out, as decisions alone: which part goes next, and when to speak again.

`Outgoing` is what everybody keeps who sends: a coordinator the chunks that devices ask for, a device those of
its update. `Push` is what only an upload has: the header before the chunks, and again where no answer comes.
Nothing here waits, reads a clock or touches a disk (`edge.delivery`); times are seconds of any clock.
"""

from collections.abc import Iterable
from typing import Literal

from edge.protocol.chunks import first_chunks, merge_ranges, without_chunk
from edge.protocol.messages import WINDOW, Range, Receipt, Want
from edge.protocol.patience import Patience

Part = int | Literal["header"]  # a chunk's number, or what goes before all chunks


class Outgoing:
    """The chunks of one payload that are to be sent, and those under way.

    Args:
        total: How many chunks the payload has.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._waiting: tuple[Range, ...] = ()
        self._in_flight: set[int] = set()

    @property
    def num_in_flight(self) -> int:
        """Returns how many chunks are under way."""
        return len(self._in_flight)

    @property
    def is_idle(self) -> bool:
        """Tells whether nothing waits and nothing is under way."""
        return not self._waiting and not self._in_flight

    def add(self, want: Want) -> None:
        """Sends too what a device asks for, as far as its window goes; hostile ranges cost nothing."""
        wanted = first_chunks(merge_ranges(want.ranges, self._total), want.window)
        self.replace((*self._waiting, *wanted))

    def replace(self, ranges: Iterable[Range]) -> None:
        """Sends just `ranges` from now on, and what is under way no second time."""
        self._waiting = merge_ranges(ranges, self._total)
        for number in self._in_flight:
            self._waiting = without_chunk(self._waiting, number)

    def next(self, window: int) -> int | None:
        """Returns the chunk to send now; None where none waits, or `window` are under way."""
        if not self._waiting or len(self._in_flight) >= max(window, 1):
            return None
        number = self._waiting[0][0]
        self._waiting = without_chunk(self._waiting, number)
        self._in_flight.add(number)
        return number

    def sent(self, number: int) -> None:
        """Notes that the broker has taken a chunk."""
        self._in_flight.discard(number)


class Push:
    """One update on its way: the header, then all chunks, then the header again until the verdict is there.

    What the other side has is not known here after a restart: sending begins at the beginning, and a receipt
    that comes meanwhile (`missing`, or the verdict) cuts it short. Who was told `busy` begins anew after a
    while. Of an update that is one chunk, the chunk goes with a header that is sent again where nothing at
    all was heard: to ask first would take a round trip for 64 KiB at most.

    Args:
        total: How many chunks the update has.
        patience: How long to wait for a receipt when all is sent; the sender's, over all its updates.

    Attributes:
        verdict: The final receipt; nothing is sent after it.
    """

    def __init__(self, total: int, patience: Patience) -> None:
        self.verdict: Receipt | None = None
        self._chunks = Outgoing(total)
        self._total = total
        self._patience = patience
        self._moved_at = 0.0
        self._num_headers = 0  # sent since something was heard
        self._is_held_back = False
        self._was_heard = False
        self._is_header_due = True
        self._is_header_under_way = False
        self._send_all()

    def next(self, now: float, window: int) -> Part | None:
        """Returns the part to send now, at most `window` of them at a time; None where there is none yet."""
        if self.verdict is not None:
            return None
        if self._is_quiet and now >= self._due_at:
            self._ask_again()
        if self._is_header_under_way:  # before it nobody would know whose the chunks are
            return None
        if not self._is_header_due:
            return self._chunks.next(min(window, WINDOW))
        if self._chunks.num_in_flight >= max(window, 1):
            return None
        self._is_header_due, self._is_header_under_way = False, True
        self._num_headers += 1
        return "header"

    def sent(self, part: Part, now: float) -> None:
        """Notes that the broker has taken a part."""
        self._moved_at = now
        if part == "header":
            self._is_header_under_way = False
        else:
            self._chunks.sent(part)

    def receive(self, receipt: Receipt, now: float) -> None:
        """Takes a receipt whose signature was checked."""
        was_quiet_s = now - self._moved_at if self._is_quiet and self._num_headers <= 1 else None
        self._moved_at, self._num_headers, self._was_heard = now, 0, True
        if receipt.status == "busy":
            self._is_held_back = True
            self._chunks.replace([])
            return
        self._is_held_back = False
        if receipt.status == "missing":
            self._patience.restore()
            self._chunks.replace(receipt.missing)
        else:
            self.verdict = receipt
            if was_quiet_s is not None:  # the header was asked about once: this is its answer
                self._patience.measure(was_quiet_s)

    def interrupt(self) -> None:
        """Sends the header again at once: the coordinator may have forgotten the update."""
        self._is_header_due = True
        self._patience.restore()
        if self._is_held_back:
            self._send_all()

    def wait_s(self, now: float) -> float | None:
        """Returns how long there is nothing to send, unless a receipt comes; None while parts fly."""
        return max(0.0, self._due_at - now) if self._is_quiet else None

    def _ask_again(self) -> None:
        self._is_header_due = True
        self._patience.wear()
        if self._is_held_back or (self._total == 1 and not self._was_heard):
            self._send_all()

    def _send_all(self) -> None:
        """Has all chunks sent behind the header."""
        self._is_held_back = False
        self._chunks.replace([(0, self._total)])

    @property
    def _is_quiet(self) -> bool:
        return not self._is_header_due and not self._is_header_under_way and self._chunks.is_idle

    @property
    def _due_at(self) -> float:
        return self._moved_at + self._patience.wait_s
