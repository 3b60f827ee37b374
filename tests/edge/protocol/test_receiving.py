"""A download against a wire that loses, repeats, reorders and restarts: no loop, no disk, no clock."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from edge.errors import Rejected
from edge.protocol.messages import WINDOW, Want
from edge.protocol.receiving import Pull, Received
from edge.protocol.sending import Outgoing

PATIENCE_S = 10.0
TRICKS = ("ask", "serve", "lose", "repeat", "swap", "take", "silence", "restart", "other")


def received(total, *numbers):
    chunks = Received(total, 1)
    for number in numbers:
        chunks.take(number)
    return chunks


@pytest.mark.parametrize(("number", "length"), [(-1, 10), (3, 0), (3, 10), (0, 9), (2, 10), (2**53, 10)])
def test_a_chunk_that_cannot_be_is_rejected(number, length):
    with pytest.raises(Rejected, match=f"malformed: chunk {number} of {length} bytes, expected "):
        Received(25, 10).lacks(number, length)


def test_a_chunk_is_lacking_until_it_is_taken():
    chunks = Received(25, 10)
    assert chunks.lacks(2, 5)
    chunks.take(2)
    assert not chunks.lacks(2, 5)
    assert (chunks.missing(), chunks.num_missing, chunks.total) == (((0, 2),), 2, 3)
    again = Received(25, 10, bytes(chunks.present))
    assert again.missing() == chunks.missing()


def test_a_window_is_asked_for_when_the_one_before_has_come():
    chunks = received(50)
    pull = Pull(chunks, PATIENCE_S)
    assert pull.ask(0.0) == ((0, 50),)
    for number in range(WINDOW - 1):
        chunks.take(number)
        assert pull.ask(1.0) == ()
    chunks.take(49)  # another device's, which passes by, counts as well
    assert pull.ask(1.0) == ((15, 49),)


def test_a_window_that_came_in_part_is_asked_for_again_after_patience():
    chunks = received(50)
    pull = Pull(chunks, PATIENCE_S)
    pull.ask(0.0)
    chunks.take(3)
    assert pull.ask(5.0) == ()
    assert pull.wait_s(5.0) == PATIENCE_S
    assert pull.ask(14.9) == ()
    assert pull.ask(15.0) == ((0, 3), (4, 50))


def test_a_window_of_which_nothing_came_is_the_last():
    pull = Pull(received(50), PATIENCE_S)
    pull.ask(0.0)
    assert pull.ask(10.0) == ()
    assert pull.is_over
    assert pull.ask(20.0) == ()


def test_who_gave_up_asks_for_nothing():
    pull = Pull(received(50), PATIENCE_S)
    pull.give_up()
    assert pull.ask(0.0) == ()


def test_what_is_whole_is_not_asked_for():
    assert Pull(received(2, 0, 1), PATIENCE_S).ask(0.0) == ()


@settings(max_examples=300)
@given(st.integers(1, 60), st.integers(1, WINDOW), st.data())
def test_every_download_completes_over_any_wire(total, window, data):
    """Who downloads begins anew where it gave up; no more than a window is ever on its way for one want."""
    chunks, now = Received(total, 1), 0.0
    pull, outgoing = Pull(chunks, PATIENCE_S, window), Outgoing(total)
    wants, wire = [], []
    tricks = data.draw(
        st.lists(
            st.sampled_from(
                ["ask", "serve", "lose", "repeat", "swap", "take", "silence", "restart", "other"]
            ),
            max_size=60,
        )
    )
    for trick in [*tricks, *["fair"] * 2000]:
        is_fair = trick == "fair"
        if chunks.is_complete:
            break
        if is_fair or trick == "ask":
            if pull.is_over:
                pull = Pull(chunks, PATIENCE_S, window)
            if ranges := pull.ask(now):
                wants.append(Want(sha256="0" * 64, ranges=ranges, window=window))
        if wants and (is_fair or trick == "serve"):
            outgoing.add(wants.pop(0))
            sent = 0
            while (number := outgoing.next(window)) is not None:
                sent += 1
                outgoing.sent(number)
                wire.append(number)
            assert sent <= window
        if wire and trick == "lose":
            wire.pop()
        if wire and trick == "repeat":
            wire.append(wire[0])
        if wire and trick == "swap":
            wire.reverse()
        if trick == "other":  # of another device that asks for the same
            wire.append(data.draw(st.integers(0, total - 1)))
        if wire and (is_fair or trick == "take"):
            number = wire.pop(0)
            if chunks.lacks(number, 1):
                chunks.take(number)
        if trick == "silence" or (is_fair and not wants and not wire):
            now += pull.wait_s(now)
        if trick == "restart":
            chunks = Received(total, 1, bytes(chunks.present))
            pull = Pull(chunks, PATIENCE_S, window)
    assert chunks.is_complete
