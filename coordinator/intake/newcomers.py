"""Which new devices a fleet takes in, where anybody may come: so many a minute, so many ids for a key.

A place in a full fleet is not lost for ever to whoever came first. A device that never had an update accepted
gives its place up to a newcomer that is here now: of these the one that is offline, or was not heard for
longest. It costs a stranger nothing to come again, and an honest device, which is heard while it trains,
nothing at all.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping

from coordinator.ledger.records import Device
from coordinator.limits import Limits
from edge.bucket import Bucket, Rate
from edge.errors import Rejected


class Newcomers:
    """Makes room for new devices, or refuses them.

    Args:
        limits: How many, and how fast.
        clock: Seconds of any beginning, never set back.
        devices: Who is enrolled already.
        delivered: Who ever had an update accepted.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float],
        devices: Collection[Device],
        delivered: Collection[str],
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._rate = Bucket(
            Rate(limits.enrolments_per_minute / 60, limits.enrolments_per_minute), self._clock()
        )
        self._num_ids = Counter(device.key for device in devices)
        self._delivered = set(delivered)

    @property
    def is_pressed(self) -> bool:
        """Tells whether no newcomer can be let in now; no signature is looked at then."""
        return self._rate.held(self._clock()) < 1.0

    def admit(self, key: str, devices: Mapping[str, Device], *, is_here: bool) -> Device | None:
        """Lets a new id of `key` in.

        Args:
            key: Its public key.
            devices: Who is enrolled, by id.
            is_here: Whether it was heard just now; what a broker has kept displaces nobody.

        Returns:
            The device that has to give up its place; None where there is room.

        Raises:
            Rejected: `unknown-device`.
        """
        limits = self._limits
        if (num_ids := self._num_ids[key]) >= limits.max_ids_per_key:
            raise Rejected(
                "unknown-device",
                f"key {key[:16]}… has {num_ids} devices, expected at most {limits.max_ids_per_key}",
            )
        idle = None
        if len(devices) >= limits.max_devices:
            idle = self._idlest(devices.values()) if is_here else None
            if idle is None:
                raise Rejected("unknown-device", f"the fleet is full: it holds {limits.max_devices} devices")
        if not self._rate.take(self._clock()):
            raise Rejected(
                "unknown-device",
                f"more than {limits.enrolments_per_minute} devices came in a minute; it may come again",
            )
        self._num_ids[key] += 1
        if idle:
            self.forget(idle)
        return idle

    def recount(self, devices: Collection[Device]) -> None:
        """Takes other keys and devices for those that are enrolled."""
        self._num_ids = Counter(device.key for device in devices)

    def forget(self, device: Device) -> None:
        """Notes that a device is enrolled no longer."""
        self._num_ids[device.key] -= 1
        if not self._num_ids[device.key]:
            del self._num_ids[device.key]
        self._delivered.discard(device.device)

    def deliver(self, device_id: str) -> None:
        """Notes that an update of a device was accepted."""
        self._delivered.add(device_id)

    @property
    def num_delivered(self) -> int:
        """Returns how many devices ever had an update accepted."""
        return len(self._delivered)

    def has_delivered(self, device_id: str) -> bool:
        """Tells whether an update of a device was ever accepted."""
        return device_id in self._delivered

    def _idlest(self, devices: Collection[Device]) -> Device | None:
        idle = [one for one in devices if one.device not in self._delivered]
        return min(idle, key=lambda one: (one.online, one.last_seen), default=None)
