import pytest

from edge.complaints import ALL_KINDS, EVERY_S, MAX_LENGTH, Complaints
from edge.errors import ProtocolError


class Log:
    def __init__(self):
        self.lines, self.now = [], 50.0
        self.complain = Complaints(self.lines.append, lambda: self.now)


@pytest.fixture
def log():
    return Log()


def test_a_kind_is_told_once_a_minute_with_the_count_of_what_was_left_out(log):
    for number in range(42):
        log.complain(f"junk {number}", "junk")
    assert log.lines == ["junk 0"]
    log.now += EVERY_S
    log.complain("junk again", "junk")
    assert log.lines[1:] == ["junk again (and 41 more like it, since the last time)"]
    log.now += EVERY_S
    log.complain("junk at last", "junk")
    assert log.lines[2:] == ["junk at last"]


def test_without_a_kind_the_same_words_are_one(log):
    for text in ("full", "full", "empty"):
        log.complain(text)
    assert log.lines == ["full", "empty"]


def test_a_thousand_kinds_are_not_a_thousand_lines(log):
    for number in range(1000):
        log.complain(f"fault {number}")
    assert len(log.lines) == ALL_KINDS.burst
    log.now += EVERY_S
    log.complain("another")
    assert log.lines[-1] == "another (and 970 of other kinds, since the last time)"


def test_a_clock_that_was_set_back_silences_nothing(log):
    log.complain("full")
    log.now = 0.0
    log.complain("full")
    assert len(log.lines) == 2


def test_a_line_is_never_long(log):
    log.complain("x" * 10_000)
    assert len(log.lines[0]) == MAX_LENGTH


def test_a_strangers_words_are_printable_and_on_one_line(log):
    log.complain("from \x1b[31mred\r\n12:00:00 accepted\u202e")
    assert log.lines == ["from \\x1b[31mred\\r\\n12:00:00 accepted\\u202e"]


def test_errors_of_ours_are_told_and_mistakes_are_named_as_such(log, caplog):
    with caplog.at_level("DEBUG", logger="edge.complaints"):
        log.complain.unforeseen("hello", ProtocolError("no name"))
        log.complain.unforeseen("hello", KeyError("name"))
        log.complain.unforeseen("state", KeyError("other"))
    assert log.lines == [
        "hello: left out: no name",
        "hello: left out: KeyError: 'name'; this is a mistake in tunefleet",
    ]
    assert [record.exc_info[0] for record in caplog.records] == [KeyError]
