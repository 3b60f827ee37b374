"""The one way in for what devices sign: who has not proved who it is gets no further, and costs little.

In this order: whether the device has said too much already; the envelope, bounded in size; whose key it
names; whether that key has signed something later; and only then the signature, which costs the most. Nothing
is written down before all of it was right, and nobody is answered before: a counter is all that strangers
leave (`edge.complaints`).
"""

from msgspec import Struct

from coordinator.intake.allowance import Allowance
from coordinator.intake.roster import Roster
from edge.errors import ProtocolError
from edge.protocol.signing import Keyring, Opened, R, check_order, read_signed, stamp_of
from edge.protocol.topics import DeviceTopic, HeaderTopic, HelloTopic, StateTopic, TelemetryTopic, WantTopic
from edge.transport.base import Message

KINDS: dict[type[DeviceTopic], str] = {
    HelloTopic: "hello",
    StateTopic: "state",
    WantTopic: "want",
    HeaderTopic: "header",
    TelemetryTopic: "telemetry",
}
RETAINED = frozenset({"hello", "state"})  # come again with each subscription
ENROLLING = frozenset({"hello", "want", "header"})  # pin a newcomer's key, where enrolment is open


class Gate:
    """Opens what devices have signed.

    Args:
        roster: Knows their keys and how far each has come.
        allowance: How much each may say; None lets everybody say everything.
    """

    def __init__(self, roster: Roster, allowance: Allowance | None = None) -> None:
        self._roster = roster
        self._allowance = allowance
        self._keyring = Keyring()

    def open(self, topic: DeviceTopic, message: Message, kind: type[R], at: float | None) -> Opened[R]:
        """Returns what a device has signed for `topic`; a newcomer is enrolled by it where anybody may come.

        Args:
            topic: Where it came.
            message: As it came.
            kind: Of record.
            at: Unix time; None where it was retained and says nothing of when.

        Raises:
            Unproven: It does not prove to be that device's.
            Outdated: The device has signed something later there.
            ProtocolError: It is the device's, and no `kind`; or the device has said more than its share.
            Rejected: The fleet takes no such newcomer.
            DiskFull: The newcomer could not be written down.
        """
        device_id, name = topic.device_id, KINDS[type(topic)]
        allowance = self._allowance if self._roster.key(device_id) is not None else None
        if allowance and not allowance.hears(device_id):
            raise ProtocolError(f"{device_id} says more than its share, and is not heard for a moment")
        signed = read_signed(message.payload)
        self._roster.check_key(device_id, signed.key)
        stamp = stamp_of(signed)
        latest = self._roster.stamp(device_id, name)
        check_order(stamp, latest, f"{name} of {device_id}", again=name in RETAINED)
        opened = self._keyring.open(message.topic, signed, kind)
        if allowance:
            allowance.count(device_id)
        _check_name(opened.record, device_id)
        if name in ENROLLING:
            self._roster.enrol(device_id, signed.key, at)
        self._roster.mark(device_id, name, stamp)
        return opened


def _check_name(record: Struct, device_id: str) -> None:
    named = getattr(record, "device_id", device_id)
    if named != device_id:
        raise ProtocolError(f"{type(record).__name__} of {named} came on the topic of {device_id}")
