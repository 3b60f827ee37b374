"""An upload against a wire that loses, repeats, reorders and restarts: no loop, no disk, no clock."""

import hypothesis.strategies as st
from hypothesis import given, settings

from edge.protocol.messages import WINDOW, Receipt, Want
from edge.protocol.patience import MAX_BACKOFF, Patience
from edge.protocol.receiving import Received
from edge.protocol.sending import Outgoing, Push

PATIENCE_S = 10.0
TRICKS = (
    "send",
    "acknowledge",
    "lose",
    "repeat",
    "swap",
    "hear",
    "answer",
    "silence",
    "forget",
    "restart",
    "evict",
)
UPDATE = "ab" * 16
BUSY = Receipt(update="0" * 32, header="0" * 64, status="busy")
ACCEPTED = Receipt(update=UPDATE, header="0" * 64, status="accepted")


def missing(*ranges):
    return Receipt(update=UPDATE, header="0" * 64, status="missing", missing=ranges)


def parts(push, now=0.0, window=1000):
    """All parts that may be sent at once; nothing is acknowledged."""
    found = []
    while (part := push.next(now, window)) is not None:
        found.append(part)
    return found


def send_all(push, now=0.0):
    """Sends until there is nothing to send; returns the parts."""
    found = []
    while (part := push.next(now, WINDOW)) is not None:
        push.sent(part, now)
        found.append(part)
    return found


def test_no_chunk_goes_before_the_broker_has_the_header():
    push = Push(3, Patience(PATIENCE_S))
    assert parts(push) == ["header"]
    push.sent("header", 0.0)
    assert parts(push) == [0, 1, 2]


def test_only_a_window_of_chunks_is_under_way():
    push = Push(50, Patience(PATIENCE_S))
    push.sent(push.next(0.0, 4), 0.0)
    assert parts(push, window=4) == [0, 1, 2, 3]
    push.sent(2, 0.0)
    assert parts(push, window=4) == [4]
    assert len(parts(push, window=1000)) == WINDOW - 4  # the wire's own bound


def test_silence_brings_the_header_again_ever_more_rarely():
    push, now, asked = Push(2, Patience(PATIENCE_S)), 0.0, []
    send_all(push)
    for _ in range(6):
        wait_s = push.wait_s(now)
        assert parts(push, now + wait_s - 0.001) == []
        now += wait_s
        assert send_all(push, now) == ["header"]
        asked.append(wait_s / PATIENCE_S)
    assert asked == [1, 2, 4, MAX_BACKOFF, MAX_BACKOFF, MAX_BACKOFF]


def test_a_single_chunk_goes_with_its_header_until_something_is_heard_and_then_as_it_is_asked_for():
    push = Push(1, Patience(PATIENCE_S))
    assert send_all(push) == ["header", 0]
    assert send_all(push, 10.0) == ["header", 0]
    push.receive(missing(), 11.0)
    assert send_all(push, 11.0) == []
    assert send_all(push, 21.0) == ["header"]
    push.receive(missing((0, 1)), 22.0)
    assert send_all(push, 22.0) == [0]


def test_an_answer_restores_patience():
    push = Push(1, Patience(PATIENCE_S))
    send_all(push)
    for now in (10.0, 30.0):
        send_all(push, now)
    push.receive(missing((0, 1)), 31.0)
    assert send_all(push, 31.0) == [0]
    assert push.wait_s(31.0) == PATIENCE_S


def test_verdicts_teach_the_next_update_how_long_to_wait():
    patience = Patience(PATIENCE_S)
    for _ in range(40):
        push = Push(1, patience)
        send_all(push, 100.0)
        push.receive(ACCEPTED, 102.0)
    push = Push(1, patience)
    send_all(push, 200.0)
    assert 2.0 <= push.wait_s(200.0) <= 2.1


def test_a_verdict_on_what_was_asked_twice_teaches_nothing_and_the_longer_wait_stays():
    patience = Patience(PATIENCE_S)
    push = Push(2, patience)
    send_all(push)
    send_all(push, PATIENCE_S)
    push.receive(ACCEPTED, PATIENCE_S + 0.001)
    assert patience.wait_s == 2 * PATIENCE_S


def test_what_is_missing_is_sent_and_nothing_else():
    push = Push(50, Patience(PATIENCE_S))
    push.sent(push.next(0.0, WINDOW), 0.0)
    assert push.next(0.0, WINDOW) == 0
    push.receive(missing((0, 2), (7, 9), (48, 2**53)), 0.0)
    assert send_all(push) == [1, 7, 8, 48, 49]  # 0 is under way


def test_who_is_told_busy_sends_no_chunk_waits_ever_longer_and_then_begins_anew():
    push, now, waits = Push(50, Patience(PATIENCE_S)), 0.0, []
    send_all(push)
    for _ in range(4):
        push.receive(BUSY, now)
        assert push.verdict is None
        waits.append(push.wait_s(now) / PATIENCE_S)
        assert parts(push, now + push.wait_s(now) - 0.001) == []
        now += push.wait_s(now)
        assert send_all(push, now) == ["header", *range(50)]
    assert waits == [1, 2, 4, MAX_BACKOFF]
    push.receive(BUSY, now)
    push.interrupt()
    assert send_all(push, now) == ["header", *range(50)]


def test_a_verdict_ends_it():
    push = Push(50, Patience(PATIENCE_S))
    push.sent(push.next(0.0, WINDOW), 0.0)
    push.receive(ACCEPTED, 0.0)
    assert parts(push) == []
    assert push.verdict == ACCEPTED


def test_an_interruption_brings_the_header_at_once_and_the_chunks_behind_it():
    push = Push(50, Patience(PATIENCE_S))
    push.sent(push.next(0.0, WINDOW), 0.0)
    assert parts(push, window=2) == [0, 1]
    push.interrupt()
    assert parts(push, window=2) == []
    push.sent(0, 0.0)
    assert parts(push, window=2) == ["header"]
    push.sent("header", 0.0)
    assert parts(push, window=2) == [2]


def test_an_empty_update_is_a_header():
    assert send_all(Push(0, Patience(PATIENCE_S))) == ["header"]


def test_wants_are_joined_and_each_is_bounded_by_its_window():
    outgoing = Outgoing(100)
    outgoing.add(Want(sha256="0" * 64, ranges=((0, 2**53),), window=3))
    outgoing.add(Want(sha256="0" * 64, ranges=((2, 4), (90, 2**53)), window=16))
    assert [outgoing.next(100) for _ in range(15)] == [*range(4), *range(90, 100), None]


class Coordinator:
    """The other end: what it keeps survives a restart, what it hears of strangers is dropped."""

    def __init__(self, total):
        self.received = Received(total, 1)
        self.knows = self.is_done = False

    def hear(self, part):
        """Takes a part; returns the receipts that it brings, one or none."""
        if self.is_done:
            return [ACCEPTED] if part == "header" else []
        if part == "header" and self.knows:
            return [ACCEPTED if self.settle() else missing(*self.received.missing(2))]
        self.knows |= part == "header"
        if self.knows and part != "header" and self.received.lacks(part, 1):
            self.received.take(part)
        return [ACCEPTED] if self.knows and self.settle() else []

    def settle(self):
        self.is_done = self.received.is_complete
        return self.is_done


@settings(max_examples=300)
@given(st.integers(0, 40), st.integers(1, 20), st.data())
def test_every_upload_completes_over_any_wire(total, window, data):
    """The adversary has its way for some time; what it drops, twists and kills in it costs time only."""
    there, push, now = Coordinator(total), Push(total, Patience(PATIENCE_S)), 0.0
    wire, answers, unacknowledged = [], [], []
    tricks = data.draw(st.lists(st.sampled_from(TRICKS), max_size=60))
    for trick in [*tricks, *["fair"] * 2000]:
        if push.verdict:
            break
        is_fair = trick == "fair"
        if is_fair or trick == "send":
            begun = parts(push, now, window)
            wire += begun
            unacknowledged += begun
            assert len(unacknowledged) <= window
        if unacknowledged and (is_fair or trick == "acknowledge"):
            push.sent(unacknowledged.pop(0), now)
        if wire and trick == "lose":
            wire.pop()
        if wire and trick == "repeat":
            wire.append(wire[0])
        if wire and trick == "swap":
            wire.reverse()
        if wire and (is_fair or trick == "hear"):
            answers += there.hear(wire.pop(0))
        if answers and (is_fair or trick == "answer"):
            push.receive(answers.pop(0), now)
        if trick == "silence" or (is_fair and not (wire or answers or unacknowledged)):
            now += push.wait_s(now) or 0.0
        if trick == "forget":
            push.interrupt()
        if trick == "restart":  # of the device: it knows of nothing that it sent
            push, unacknowledged = Push(total, Patience(PATIENCE_S)), []
        if trick == "evict" and not there.is_done:  # the coordinator needed the room, or was restored
            there = Coordinator(total)
    assert push.verdict == ACCEPTED
    assert there.is_done
