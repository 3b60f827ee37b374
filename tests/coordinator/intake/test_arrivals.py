import pytest

from coordinator.intake.arrivals import Arrivals
from coordinator.intake.roster import Roster
from coordinator.ledger.sqlite import SqliteJournal
from edge.errors import ProtocolError
from edge.protocol.messages import Hello, Presence, encode_message
from edge.protocol.signing import new_key, sign_message
from edge.transport.base import Message

KEY = new_key()
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
        self.journal = SqliteJournal(None, "home")
        self.start()

    def start(self):
        self.told = []
        self.roster = Roster(self.journal, {}, is_open=True)
        self.arrivals = Arrivals(self.roster, lambda event: self.told.append((event.kind, event.device)))

    def hello(self, at=1000.0, *, retained=False):
        self.arrivals.greet("lamp", Message("", sign_message(CARD, KEY), retained), at)

    def state(self, online, at=1000.0, *, epoch=1, retained=False):
        payload = encode_message(Presence(online=online, epoch=epoch))
        self.arrivals.observe("lamp", Message("", payload, retained), at)

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
    message = Message("", sign_message(CARD, KEY))
    with pytest.raises(ProtocolError, match="hello of lamp came on another device's topic"):
        desk.arrivals.greet("pump", message, 0.0)
