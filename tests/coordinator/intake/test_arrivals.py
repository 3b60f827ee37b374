import pytest

from coordinator.intake.arrivals import Arrivals
from coordinator.intake.gate import Gate
from coordinator.intake.roster import Roster
from coordinator.ledger.sqlite import SqliteJournal
from edge.errors import Outdated, ProtocolError
from edge.protocol.messages import Hello, Presence
from edge.protocol.signing import Signer, new_key
from edge.protocol.topics import Topics
from edge.transport.base import Message

KEY, TOPICS = new_key(), Topics("home")
CARD = Hello(
    device_id="lamp",
    backend="torch",
    ranks=(8,),
    encodings=("f32",),
    memory_bytes=1,
    tokens_per_s=None,
    base="0" * 64,
)


class Desk:
    """Arrivals at a fleet, and what they told."""

    def __init__(self):
        self.signers = {}
        self.journal = SqliteJournal(None, "home")
        self.start()

    def start(self):
        self.told = []
        self.roster = Roster(self.journal, {}, is_open=True)
        self.arrivals = Arrivals(self.roster, lambda event: self.told.append((event.kind, event.device)))
        self.gate = Gate(self.roster)

    def open(self, kind, record, at, retained, epoch):
        """As the router does; the card is signed after all presence of its epoch."""
        name = TOPICS.device("lamp", kind)
        signer = self.signers.setdefault(epoch, Signer(KEY, epoch))
        message = Message(name, signer.seal(name, record), retained)
        return self.gate.open(TOPICS.parse(name), message, type(record), None if retained else at)

    def hello(self, at=1000.0, *, retained=False):
        self.arrivals.greet(self.open("hello", CARD, at, retained, 1).record, at, retained)

    def state(self, online, at=1000.0, *, epoch=1, retained=False):
        opened = self.open("state", Presence(online=online), at, retained, epoch)
        self.arrivals.observe("lamp", opened, at, retained)

    def device(self):
        self.roster.flush()
        (device,) = self.journal.devices()
        return device


@pytest.fixture
def desk():
    return Desk()


def test_a_device_that_comes_joins_goes_and_is_back(desk):
    desk.state(True)
    desk.hello()
    desk.state(False)
    desk.state(True, epoch=2)
    assert desk.told == [("joined", "lamp"), ("offline", "lamp"), ("online", "lamp")]


def test_a_stranger_under_a_newcomers_name_does_not_take_its_presence(desk):
    topic = TOPICS.device("lamp", "state")
    other = Signer(new_key(), 2**50)
    opened = desk.gate.open(
        TOPICS.parse(topic), Message(topic, other.seal(topic, Presence(online=False))), Presence, 1.0
    )
    desk.arrivals.observe("lamp", opened, 1.0, False)
    desk.state(True)
    desk.hello()
    assert desk.roster.online() == ["lamp"]


def test_presence_that_is_repeated_is_told_once(desk):
    desk.hello()
    for _ in range(3):
        desk.state(True)
    for _ in range(3):
        desk.state(False)
    assert desk.told == [("joined", "lamp"), ("online", "lamp"), ("offline", "lamp")]


def test_a_late_will_of_an_old_session_is_not_told(desk):
    desk.state(True, epoch=5)
    desk.hello()
    with pytest.raises(Outdated):
        desk.state(False, epoch=4)
    assert desk.told == [("joined", "lamp")]


@pytest.mark.parametrize("is_state_first", [True, False])
def test_the_retained_card_of_a_device_that_is_gone_is_no_arrival(desk, is_state_first):
    if is_state_first:
        desk.state(False, retained=True)
    desk.hello(retained=True)
    if not is_state_first:
        desk.state(False, retained=True)
    assert desk.told == []
    assert (desk.device().online, desk.device().last_seen) == (False, 0.0)
    desk.state(True, 2000.0, epoch=2)
    assert desk.told == [("joined", "lamp")]
    assert (desk.device().online, desk.device().last_seen) == (True, 2000.0)


@pytest.mark.parametrize("is_state_first", [True, False])
def test_a_device_that_was_there_before_its_coordinator_joins(desk, is_state_first):
    if is_state_first:
        desk.state(True, retained=True)
    desk.hello(retained=True)
    if not is_state_first:
        desk.state(True, retained=True)
    assert desk.told == [("joined", "lamp")]


def test_a_restart_counts_those_who_stayed_and_keeps_when_others_were_seen(desk):
    desk.state(True)
    desk.hello()
    desk.roster.flush()
    desk.start()
    assert desk.device().online is False  # until the broker says so
    desk.hello(5000.0, retained=True)
    desk.state(False, 5000.0, retained=True)
    assert desk.device().last_seen == 1000.0
    desk.state(True, 6000.0, retained=True)
    assert (desk.roster.online(), desk.told) == (["lamp"], [])


def test_a_card_on_another_devices_topic_is_refused(desk):
    topic = TOPICS.device("pump", "hello")
    message = Message(topic, Signer(KEY, 1).seal(topic, CARD))
    with pytest.raises(ProtocolError, match="Hello of lamp came on the topic of pump"):
        desk.gate.open(TOPICS.parse(topic), message, Hello, 0.0)
    assert desk.journal.devices() == []
