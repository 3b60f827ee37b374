"""Who comes and goes: capability cards and presence, as devices publish them or as the broker has kept them.

Both are retained, so that a coordinator that starts gets those of everybody who was ever here. A card that
was retained proves nothing; presence does, for the broker changes it when a device's connection breaks.
"""

from coordinator.events.records import DeviceJoined, DeviceOffline, DeviceOnline
from coordinator.events.telling import Tell
from coordinator.intake.roster import Roster
from edge.errors import ProtocolError
from edge.protocol.messages import Hello, Presence, decode_message
from edge.protocol.signing import open_signed
from edge.transport.base import Message


class Arrivals:
    """Takes cards and presence into the roster, and tells what is new.

    Args:
        roster: The devices.
        tell: Gets `joined`, `online` and `offline`.
    """

    def __init__(self, roster: Roster, tell: Tell) -> None:
        self._roster = roster
        self._tell = tell
        self._newcomers: dict[str, str] = {}  # devices that have not been told as joined, and their backends

    def greet(self, device_id: str, message: Message, at: float) -> None:
        """Takes a device's card.

        Raises:
            ProtocolError: It is malformed, or another device's.
            Rejected: Its key may not speak for the device.
        """
        hello, key = open_signed(message.payload, Hello)
        if hello.device_id != device_id:
            raise ProtocolError(f"hello of {hello.device_id} came on another device's topic")
        is_new, seen_at = self._roster.key(device_id) is None, None if message.retained else at
        self._roster.enrol(device_id, key, seen_at)
        self._roster.greet(hello, seen_at)
        if is_new:
            self._newcomers[device_id] = hello.backend
        if not message.retained or self._roster.is_online(device_id):
            self._welcome(device_id)

    def observe(self, device_id: str, message: Message, at: float) -> None:
        """Takes a device's presence; who was here before this coordinator is counted, and not told.

        Raises:
            ProtocolError: It is malformed.
        """
        presence = decode_message(message.payload, Presence)
        is_here_now = presence.online or not message.retained
        has_changed = self._roster.observe(device_id, presence, at if is_here_now else None)
        if presence.online and device_id in self._newcomers:
            self._welcome(device_id)
        elif has_changed and not message.retained:
            self._tell(DeviceOnline(device_id) if presence.online else DeviceOffline(device_id))

    def _welcome(self, device_id: str) -> None:
        backend = self._newcomers.pop(device_id, None)
        if backend is not None:
            self._tell(DeviceJoined(device_id, backend, self._roster.key(device_id) or ""))
