"""Who comes and goes: capability cards and presence, as devices publish them or as the broker has kept them.

Both are retained, so that a coordinator that starts gets those of everybody who was ever here. A card that
was retained proves nothing; presence does, for the broker changes it when a device's connection breaks.
"""

from coordinator.events.records import DeviceJoined, DeviceOffline, DeviceOnline
from coordinator.events.telling import Tell
from coordinator.intake.roster import Roster
from edge.protocol.messages import Hello, Presence
from edge.protocol.signing import Opened


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

    def greet(self, hello: Hello, at: float, is_retained: bool) -> None:
        """Takes the card of an enrolled device."""
        device_id, is_new = hello.device_id, not self._roster.has_greeted(hello.device_id)
        self._roster.greet(hello, None if is_retained else at)
        if is_new:
            self._newcomers[device_id] = hello.backend
        if not is_retained or self._roster.is_online(device_id):
            self._welcome(device_id)

    def observe(self, device_id: str, opened: Opened[Presence], at: float, is_retained: bool) -> None:
        """Takes a device's presence; who was here before this coordinator is counted, and not told."""
        presence = opened.record
        is_here_now = presence.online or not is_retained
        has_changed = self._roster.observe(device_id, opened, at if is_here_now else None)
        if presence.online and device_id in self._newcomers:
            self._welcome(device_id)
        elif has_changed and not is_retained:
            self._tell(DeviceOnline(device_id) if presence.online else DeviceOffline(device_id))

    def _welcome(self, device_id: str) -> None:
        backend = self._newcomers.pop(device_id, None)
        if backend is not None:
            self._tell(DeviceJoined(device_id, backend, self._roster.key(device_id) or ""))
