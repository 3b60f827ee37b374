"""What every journal and every store of objects does; another store is one more parameter."""

from contextlib import closing

import pytest

from coordinator.ledger.contract import MAX_REFUSALS
from coordinator.ledger.objects import FileObjects, MemoryObjects
from coordinator.ledger.payloads import Payloads
from coordinator.ledger.records import Backlog, Device, Refusal, Tally, Verdict
from coordinator.ledger.sqlite import SqliteJournal
from edge.errors import MissingObject, Rejected, StateError
from edge.protocol.messages import Hello, Telemetry
from edge.protocol.signing import Stamp

HELLO = Hello(
    device_id="x", backend="toy", ranks=(4, 2), encodings=("f32",), memory_bytes=1, tokens_per_s=None,
    base="b" * 64,
)  # fmt: skip
TELEMETRY = Telemetry(base_version=3, step=1, steps=2, loss=1.0, tokens_per_s=1.0, memory_bytes=1)


@pytest.fixture(params=["folder", "memory"])
def journal(request, tmp_path):
    with closing(SqliteJournal(tmp_path if request.param == "folder" else None, "home")) as opened:
        yield opened


@pytest.fixture(params=["files", "memory", "payloads"])
def objects(request, tmp_path):
    if request.param == "payloads":
        with closing(SqliteJournal(None, "home")) as rows:
            yield Payloads(rows, MemoryObjects())
    else:
        yield FileObjects(tmp_path / "objects") if request.param == "files" else MemoryObjects()


@pytest.fixture
def header(make_header):
    return lambda number=0, **changes: make_header(attempt=number, **changes)


def test_an_update_is_written_down_once(journal, header):
    journal.record(header(), at=1.0)
    journal.record(header(), at=2.0)
    journal.record(header(), at=3.0, rejected=Rejected("too-stale", "late"))
    (update,) = journal.waiting()
    assert (update.received_at, update.status, update.num_steps) == (1.0, "accepted", 5)


def test_many_are_written_down_in_one_step_and_each_once(journal, header):
    late = Rejected("too-stale", "late")
    first = [Verdict(header(5), 1.0, payload=b"five"), Verdict(header(3), 1.0, late), Verdict(header(5), 1.0)]
    assert journal.record_all(first) == [1, 2, 1]
    assert journal.record_all([Verdict(header(5), 2.0, payload=b"other"), Verdict(header(7), 2.0)]) == [1, 3]
    assert [(one.attempt, one.status) for one in reversed(journal.updates())] == [
        (5, "accepted"), (3, "rejected"), (7, "accepted"),
    ]  # fmt: skip
    assert (journal.payload(header(5).update), journal.payload(header(7).update)) == (b"five", None)


def test_a_payload_in_the_journal_is_read_as_one_in_a_file_and_forgotten_with_it(journal, header):
    files, small, large = MemoryObjects(), header(1), header(2)
    payloads = Payloads(journal, files)
    journal.record_all([Verdict(small, 1.0, payload=b"0123456789"), Verdict(large, 1.0)])
    payloads.put(large.update, b"abcdefghij")
    assert payloads.names() == {small.update, large.update}
    assert [payloads.get(one.update, 2, 3) for one in (small, large)] == [b"234", b"cde"]
    assert [payloads.size(one.update) for one in (small, large)] == [10, 10]
    payloads.remove([small.update, large.update])
    assert (payloads.names(), journal.payloads(), files.names()) == (set(), set(), set())
    with pytest.raises(MissingObject):
        payloads.get(small.update)


def test_a_rejection_keeps_its_reason(journal, header):
    journal.record(header(), at=1.0, rejected=Rejected("too-stale", "21 versions old"))
    update = journal.update(header().update)
    assert (update.status, update.reason, update.detail) == ("rejected", "too-stale", "21 versions old")
    assert journal.waiting() == []


def test_the_buffer_is_in_order_of_arrival(journal, header):
    for number in (3, 1, 2):
        journal.record(header(number), at=0.0)
    assert [update.attempt for update in journal.waiting()] == [3, 1, 2]


def test_only_the_latest_refusals_are_kept():
    journal = SqliteJournal(None, "home")  # through to the disk a thousand would take their time
    for number in range(MAX_REFUSALS + 5):
        journal.refuse(Refusal(float(number), "x", "y", "malformed", "junk"))
    assert [len(journal.refusals(10_000)), journal.refusals(1)[0].at] == [MAX_REFUSALS, MAX_REFUSALS + 4.0]


def test_updates_are_numbered_in_order_of_arrival_and_keep_their_number(journal, header):
    assert journal.last_seq() == 0
    assert [journal.record(header(number), 0.0) for number in (5, 3, 5)] == [1, 2, 1]
    assert journal.last_seq() == 2
    assert [update.attempt for update in journal.updates()] == [3, 5]
    assert [update.attempt for update in journal.updates(limit=1)] == [3]


def test_a_version_is_stranded_where_an_update_on_it_was_lost(journal, header):
    journal.record(header(1, base_version=2), 0.0)
    assert not journal.is_stranded(2)
    journal.discard([header(1, base_version=2).update], "hash-mismatch", "damaged")
    assert journal.is_stranded(2)
    assert not journal.is_stranded(1)
    assert journal.waiting() == []


def test_updates_are_counted_by_device(journal, header):
    for number, rejected in ((0, None), (1, Rejected("too-stale", "late")), (2, None)):
        journal.record(header(number, num_tokens=number, seconds=2.0 * number), 0.0, rejected)
    journal.discard([header(2, num_tokens=2, seconds=4.0).update], "unmergeable", "none")
    journal.record(header(0, device_id="y"), 0.0)
    assert journal.tallies() == {
        "x": Tally(accepted=1, rejected=1, discarded=1, num_tokens=2, seconds=4.0),
        "y": Tally(accepted=1, num_tokens=100, seconds=1.0),
    }


def test_devices_are_there_as_they_were_saved_by_name(journal):
    journal.enrol(Device("y", "cd", 1.0, 1.0))
    journal.enrol(Device("x", "ab", 2.0, 2.0))
    changed = Device(
        "x",
        "ab",
        2.0,
        9.0,
        True,
        HELLO,
        TELEMETRY,
        (1, 3),
        {"header": Stamp(7, 2), "state": Stamp(8, 1)},
        5.0,
    )
    journal.save([changed])
    assert journal.devices() == [changed, Device("y", "cd", 1.0, 1.0)]


def test_a_fact_that_is_agreed_on_never_changes_and_a_note_does(journal):
    journal.agree({"ranks": "4"})
    journal.agree({"ranks": "4", "scale": "2.0"})
    with pytest.raises(StateError, match=r"is of ranks 4, expected 8.* is of scale 2\.0, expected 1\.0"):
        journal.agree({"ranks": "8", "scale": "1.0"})
    journal.note("pace", "slow")
    journal.note("pace", "fast")
    assert (journal.meta("ranks"), journal.meta("pace")) == ("4", "fast")
    journal.note("pace", None)
    assert journal.meta("pace") is None


def test_objects_never_change_and_are_read_in_parts(objects):
    assert objects.names() == set()
    objects.put("a", b"0123456789")
    objects.put("a", b"other")
    objects.put("b", b"")
    assert (objects.get("a"), objects.get("a", 2, 3), objects.get("a", 8, 5)) == (
        b"0123456789",
        b"234",
        b"89",
    )
    assert (objects.size("a"), objects.size("b"), objects.names()) == (10, 0, {"a", "b"})
    objects.remove(["a", "never there"])
    for ask in (objects.get, objects.size):
        with pytest.raises(MissingObject, match="a: is gone"):
            ask("a")


def test_the_buffer_is_summed_up_for_a_device(journal, header):
    for number, device_id in ((0, "x"), (1, "x"), (0, "y")):
        journal.record(header(number, device_id=device_id, size_bytes=100), 0.0)
    journal.record(header(2), 0.0, Rejected("too-stale", "late"))
    journal.discard([header(1, size_bytes=100).update], "unmergeable", "none")
    assert journal.backlog("x") == Backlog(num_updates=2, num_bytes=200, num_own=1)
    assert journal.backlog("z") == Backlog(2, 200, 0)


def test_who_took_an_attempt_is_known_and_a_rejected_update_takes_none(journal, header):
    journal.record(header(0), 0.0)
    journal.record(header(1), 0.0, Rejected("too-stale", "late"))
    assert journal.counted("x", header().base_version, 0) == header(0).update
    assert journal.counted("x", header().base_version, 1) is None
    assert journal.counted("y", header().base_version, 0) is None


def test_the_latest_norms_are_those_of_what_counted(journal, header):
    for number, norm in enumerate((0.5, None, 2.0, 3.0)):
        journal.record(header(number), 0.0, norm=norm)
    journal.record(header(9), 0.0, Rejected("norm-too-large", "99"), norm=99.0)
    assert journal.norms(0, 2) == [("x", 4, 2.0), ("x", 4, 3.0)]
    assert journal.norms(3, 9) == [("x", 4, 3.0)]


def test_who_delivered_is_remembered_and_who_is_struck_is_forgotten(journal, header):
    journal.record(header(0), 0.0)
    journal.record(header(0, device_id="y"), 0.0, Rejected("too-stale", "late"))
    assert journal.delivered() == {"x"}
    for name in "xyz":
        journal.enrol(Device(name, "ab", 1.0, 1.0))
    journal.exchange(["x", "z", "nobody"], [Device("v", "cd", 3.0, 3.0)])
    assert [device.device for device in journal.devices()] == ["v", "y"]
    assert journal.delivered() == {"x"}
