"""What a device, or a stranger, may make the coordinator look at."""

import pytest

from coordinator.intake.allowance import Allowance
from coordinator.intake.gate import Gate
from coordinator.intake.roster import Roster
from coordinator.ledger.sqlite import SqliteJournal
from coordinator.limits import Limits
from edge.errors import ProtocolError, Rejected, Unproven
from edge.protocol.messages import Hello, Telemetry, Want
from edge.protocol.signing import Signer, new_key
from edge.protocol.topics import Topics
from edge.transport.base import Message

TOPICS = Topics("home")
TELEMETRY = Telemetry(base_version=0, step=1, steps=2, loss=1.0, tokens_per_s=1.0, memory_bytes=1)


class Door:
    """A gate with a clock that the test turns, and devices that sign for themselves."""

    def __init__(self, **limits):
        self.now, self.signers, journal = 0.0, {}, SqliteJournal(None, "home")
        self.limits = Limits(**limits)
        timer = lambda: self.now  # noqa: E731
        self.roster = Roster(journal, {}, is_open=True, limits=self.limits, timer=timer)
        self.allowance = Allowance(self.limits, journal, timer, chunk_bytes=1 << 16)
        self.gate = Gate(self.roster, self.allowance)

    def say(self, device_id, kind, record, key=None):
        name = TOPICS.device(device_id, kind)
        signer = self.signers.setdefault(device_id, Signer(key or new_key(), 1))
        message = Message(name, signer.seal(name, record), False)
        return self.gate.open(TOPICS.parse(name), message, type(record), 1.0)

    def hello(self, device_id, key=None):
        card = Hello(
            device_id=device_id, backend="toy", ranks=(8,), encodings=("f32",), memory_bytes=1,
            tokens_per_s=None, base="0" * 64,
        )  # fmt: skip
        return self.say(device_id, "hello", card, key)


def test_who_says_too_much_is_not_heard_for_a_moment_and_nobody_else_is_held_up():
    door = Door(messages_per_minute=60)
    for name in ("lamp", "pump"):
        door.hello(name)
    for _ in range(10):
        door.say("lamp", "telemetry", TELEMETRY)
    with pytest.raises(ProtocolError, match="lamp says more than its share"):
        door.say("lamp", "telemetry", TELEMETRY)
    door.say("pump", "telemetry", TELEMETRY)
    door.now += 1.0
    door.say("lamp", "telemetry", TELEMETRY)


def test_a_stranger_uses_up_nobodys_allowance():
    door = Door(messages_per_minute=60)
    door.hello("lamp")
    forger = Signer(new_key(), 9)
    name = TOPICS.device("lamp", "telemetry")
    for _ in range(100):
        message = Message(name, forger.seal(name, TELEMETRY), False)
        with pytest.raises(Unproven):
            door.gate.open(TOPICS.parse(name), message, Telemetry, 1.0)
    door.say("lamp", "telemetry", TELEMETRY)


def test_where_too_many_come_at_once_no_signature_is_looked_at():
    door = Door(enrolments_per_minute=2)
    for name in ("a", "b"):
        door.hello(name)
    with pytest.raises(Unproven, match="too many devices come at a time"):
        door.hello("c")
    door.say("a", "telemetry", TELEMETRY)
    door.now += 30.0
    door.hello("c")


def test_one_key_is_only_so_many_devices():
    door, key = Door(max_ids_per_key=2), new_key()
    for name in ("a", "b"):
        door.hello(name, key)
    with pytest.raises(Rejected, match="has 2 devices, expected at most 2"):
        door.hello("c", key)


def test_downloads_are_served_by_bytes_and_time_and_each_device_has_its_own_share():
    door = Door(want_mib_per_s=1.0, want_burst_mib=2.0)
    want = Want(sha256="0" * 64, ranges=((0, 2**53),), window=16)  # a MiB
    assert [door.allowance.serves("lamp", want) for _ in range(4)] == [True, True, False, False]
    assert door.allowance.serves("pump", want)
    door.now += 1.0
    assert [door.allowance.serves("lamp", want) for _ in range(2)] == [True, False]
    door.now += 0.25
    few = Want(sha256="0" * 64, ranges=((0, 1), (5, 7)), window=16)
    assert door.allowance.serves("lamp", few)


def test_whatever_a_version_has_a_device_may_download_it_in_one_go():
    journal = SqliteJournal(None, "home")
    largest = 100 << 20
    allowance = Allowance(Limits(), journal, lambda: 0.0, chunk_bytes=1 << 16, largest_bytes=largest)
    want = Want(sha256="0" * 64, ranges=((0, 2**53),), window=16)
    assert all(allowance.serves("lamp", want) for _ in range(4 * largest >> 20))
    assert not allowance.serves("lamp", want)


def test_progress_is_heard_so_often_and_no_oftener():
    door = Door(telemetry_per_minute=60)
    assert [door.allowance.hears_telemetry("lamp") for _ in range(12)] == [True] * 10 + [False] * 2
