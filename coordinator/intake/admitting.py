"""Devices that say why they may speak: by a token, or by the word of their old key.

What comes here comes from strangers, until it has proved more. So it is looked at in the order of what it
costs, at a bounded rate for all together, and nobody who has proved nothing is answered.
"""

from collections.abc import Callable

from coordinator.events.records import DeviceAdmitted
from coordinator.events.telling import Tell
from coordinator.intake.notices import Notices
from coordinator.intake.roster import Roster
from edge.bucket import Bucket, Rate
from edge.errors import Rejected, Unproven
from edge.protocol.enrolment import AccessNotice, Enrol
from edge.protocol.signing import Keyring, read_signed
from edge.protocol.topics import DeviceTopic
from edge.transport.base import Message

OF_ALL = Rate(per_s=20, burst=200)  # each costs up to three signatures' checks, and a write where it is true


class Admitting:
    """Lets devices in, and tells those that are out by their owner's word.

    Args:
        fleet: The fleet's name.
        key: Public, of the coordinator.
        roster: The devices.
        notices: Tells devices how it stands.
        tell: Gets `admitted`.
        clock: Unix time in seconds.
        timer: Seconds of any beginning.
    """

    def __init__(
        self,
        fleet: str,
        key: str,
        roster: Roster,
        notices: Notices,
        tell: Tell,
        clock: Callable[[], float],
        timer: Callable[[], float],
    ) -> None:
        self._fleet, self._key, self._roster = fleet, key, roster
        self._notices, self._tell, self._clock, self._timer = notices, tell, clock, timer
        self._bucket = Bucket(OF_ALL, timer())
        self._keyring = Keyring()

    def take(self, topic: DeviceTopic, message: Message) -> None:
        """Takes what a device says of its key.

        Raises:
            Unproven: It does not let that key in.
            DiskRefused: It could not be written down.
        """
        if not self._bucket.take(self._timer()):
            raise Unproven("more devices ask to be let in than are looked at; they ask again")
        signed = read_signed(message.payload)
        opened = self._keyring.open(message.topic, signed, Enrol)
        try:
            news = self._admit(topic.device_id, opened.key, opened.record)
        except Rejected as refusal:
            if self._roster.register.is_banned(topic.device_id, opened.key):
                self._notices.put(topic.device_id, AccessNotice(key=opened.key, standing="banned"))
            raise Unproven(refusal.detail) from refusal
        self._notices.put(topic.device_id, AccessNotice(key=opened.key, standing="enrolled", news=news))

    def turn_away(self, topic: DeviceTopic, message: Message) -> None:
        """Tells a device that is banned so, if it proves to be that one; anybody else hears nothing.

        Raises:
            Unproven: It does not.
        """
        signed = read_signed(message.payload)
        is_banned = self._roster.register.is_banned(topic.device_id, signed.key)
        if is_banned and self._notices.is_due(topic.device_id):
            self._keyring.verify(message.topic, signed, "a banned device's message")
            self._notices.put(topic.device_id, AccessNotice(key=signed.key, standing="banned"))

    def greet(self, device_id: str) -> None:
        """Tells a device that has greeted that it is known."""
        key = self._roster.key(device_id)
        if key is not None:
            self._notices.put(device_id, AccessNotice(key=key, standing="enrolled"))

    def bar(self, device_id: str, key: str) -> None:
        """Tells a device that was just banned."""
        if self._roster.register.is_banned(device_id, key):
            self._notices.put(device_id, AccessNotice(key=key, standing="banned"))

    def _admit(self, device_id: str, key: str, word: Enrol) -> str:
        """Returns what has changed by a device's word; empty where nothing did."""
        roster, news = self._roster, ""
        if word.claim and roster.redeem(word.claim, self._fleet, self._key, device_id, key, self._clock()):
            news = "let in by its token"
        if word.rotations:
            before = roster.register.expected(device_id, roster.key(device_id))
            if roster.rotate(word.rotations, self._fleet, device_id, self._clock()) != before:
                news = "known by its new key"
        roster.register.check(device_id, key, roster.key(device_id))
        if roster.register.expected(device_id, roster.key(device_id)) != key:
            raise Rejected("unknown-device", f"{device_id} has said nothing that lets key {key[:16]}… in")
        if news:
            self._tell(DeviceAdmitted(device_id, key, news))
        return news
