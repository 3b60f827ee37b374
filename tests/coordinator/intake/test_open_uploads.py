import pytest

from coordinator.intake.open_uploads import Uploads
from coordinator.intake.roster import Roster
from coordinator.ledger.sqlite import SqliteJournal
from coordinator.limits import Limits
from edge.errors import Rejected
from edge.protocol.chunks import split_chunks
from edge.protocol.merkle import Tree
from edge.protocol.messages import encode_message

PAYLOAD = bytes(3000)
TREE = Tree(split_chunks(PAYLOAD, 1024))
LIMITS = Limits(small_bytes=0)  # all are files


@pytest.fixture
def header(make_header):
    return lambda number, device_id="x": make_header(PAYLOAD, attempt=number, device_id=device_id)


@pytest.fixture
def folders(tmp_path):
    for name in ("incoming", "updates"):
        (tmp_path / name).mkdir()
    return tmp_path / "incoming", tmp_path / "updates"


def begin(uploads, header):
    return uploads.begin(header, encode_message(header))


def opened(header, uploads, devices="xyz"):
    return [n for n in range(20) for d in devices if uploads.find(d, header(n, d).update)]


class Turned:
    """A clock that the test turns."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Turned()


def test_who_stands_still_longest_makes_room(folders, header, clock):
    uploads = Uploads(*folders, 3, LIMITS, clock=clock)
    for number, device_id in enumerate("xyz"):
        begin(uploads, header(number, device_id))
    clock.now = LIMITS.idle_s
    uploads.write(uploads.find("x", header(0).update), 0, TREE.proof(0) + PAYLOAD[:1024])
    assert begin(uploads, header(3, "x"))
    assert opened(header, uploads) == [0, 2, 3]
    assert len(list(folders[0].iterdir())) == 6


def test_who_moves_however_slowly_is_never_thrown_out(folders, header, clock):
    uploads = Uploads(*folders, 3, LIMITS, clock=clock)
    slow = begin(uploads, header(0, "slow"))
    for number in range(2):
        begin(uploads, header(0, f"id-{number}"))
    for number in range(2, 3 * 40):  # forty ids, and each comes three times while a chunk is on its way
        if number % 40 == 0:
            clock.now += LIMITS.idle_s * 0.9
            at = number // 40 - 1
            uploads.write(slow, at, TREE.proof(at) + PAYLOAD[:1024])
        begin(uploads, header(number, f"id-{number % 40}"))
    assert uploads.find("slow", header(0, "slow").update)
    assert slow.part.received.missing() == ((2, 3),)


def test_where_all_move_there_is_no_room(folders, header, clock):
    uploads = Uploads(*folders, 2, LIMITS, clock=clock)
    assert begin(uploads, header(0, "x"))
    assert begin(uploads, header(0, "y"))
    clock.now = LIMITS.idle_s / 2
    assert begin(uploads, header(0, "z")) is None
    clock.now = LIMITS.idle_s
    assert begin(uploads, header(0, "z"))


def test_of_those_that_stand_still_the_device_with_most_makes_room(folders, header, clock):
    uploads = Uploads(*folders, 4, LIMITS, clock=clock)
    for number, device_id in ((0, "x"), (1, "y"), (2, "y"), (3, "z")):
        begin(uploads, header(number, device_id))
    clock.now = LIMITS.idle_s
    begin(uploads, header(4, "z"))
    assert opened(header, uploads) == [0, 2, 3, 4]


def test_what_stands_still_for_an_hour_is_forgotten_by_a_clock_that_nobody_sets(folders, header, clock):
    uploads = Uploads(*folders, 4, LIMITS, clock=clock)
    left, moved, checked = (begin(uploads, header(0, name)) for name in "xyz")
    clock.now = LIMITS.expiry_s - 1
    uploads.write(moved, 0, TREE.proof(0) + PAYLOAD[:1024])
    assert uploads.expire() == 0
    clock.now = LIMITS.expiry_s
    assert uploads.expire(busy={checked.header.update}) == 1
    assert not uploads.find("x", left.header.update)
    assert uploads.find("y", moved.header.update)
    assert len(list(folders[0].iterdir())) == 4


def test_one_device_cannot_take_all_the_room(folders, header):
    uploads = Uploads(*folders, 100, LIMITS)
    begin(uploads, header(10, "y"))
    for number in range(LIMITS.max_open_per_device + 2):
        begin(uploads, header(number))
    assert opened(header, uploads) == [2, 3, 4, 5, 10]


def test_newcomers_leave_places_for_devices_that_have_delivered_before(folders, header):
    roster = Roster(SqliteJournal(None, "home"), {}, is_open=True)
    roster.deliver("known")
    uploads = Uploads(*folders, 3, LIMITS, roster)
    assert [bool(begin(uploads, header(0, name))) for name in ("new-1", "new-2", "new-3", "known")] == [
        True, True, False, True,
    ]  # fmt: skip


def test_a_second_payload_for_the_same_attempt_takes_the_place_of_the_first(folders, make_header):
    uploads = Uploads(*folders, 3, LIMITS)
    first, second = make_header(PAYLOAD), make_header(PAYLOAD[1:])
    begin(uploads, first)
    begin(uploads, second)
    assert [bool(uploads.find("x", one.update)) for one in (first, second)] == [False, True]


def test_a_device_finds_its_own_uploads_only(folders, header):
    uploads = Uploads(*folders, 3, LIMITS)
    begin(uploads, header(1, "x"))
    assert uploads.find("y", header(1).update) is None


def test_a_chunk_that_cannot_be_is_rejected(folders, header):
    uploads = Uploads(*folders, 3, LIMITS)
    upload = begin(uploads, header(1))
    for number, chunk in (
        (3, b""),
        (-1, PAYLOAD[:1024]),
        (0, PAYLOAD[:1023]),
        (2**60, TREE.proof(0) + PAYLOAD[:1024]),
    ):
        with pytest.raises(Rejected, match="malformed"):
            uploads.write(upload, number, chunk)


def test_another_process_takes_up_what_was_under_way(tmp_path, folders, header):
    first = Uploads(*folders, 3, LIMITS)
    first.write(begin(first, header(1)), 1, TREE.proof(1) + PAYLOAD[1024:2048])
    begin(first, header(2))
    (folders[0] / "left-over.part").write_bytes(b"")
    (folders[0] / f"{'f' * 32}.header").write_bytes(b"of an older version")
    journal = SqliteJournal(None, "home")
    journal.record(header(2), at=0.0)
    second = Uploads(*folders, 3, LIMITS)
    second.recover(journal)
    assert opened(header, second) == [1]
    assert second.find("x", header(1).update).part.received.missing() == ((0, 1), (2, 3))
    assert {path.name for path in folders[0].iterdir()} == {
        f"{header(1).update}.{kind}" for kind in ("header", "part")
    }
