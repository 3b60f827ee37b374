"""Who is in the fleet: each device's pinned key, its presence, its capability card and how its task goes.

Who may speak for a device is the register's to say (`coordinator.intake.register`); a key that it lets speak
is pinned at the first message that it signs. Whom it lets speak no longer is neither online nor waited for.
Presence, progress and newcomers come often, so they are kept in memory and written down together, at `flush`.
Nobody is online until this session has heard so: the broker has the presence of those who are, and may be
another than before.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from coordinator.intake.hearing import Hearing
from coordinator.intake.newcomers import Newcomers
from coordinator.intake.register import Register
from coordinator.ledger.contract import Journal
from coordinator.ledger.records import Device
from coordinator.limits import Limits
from edge.errors import Rejected, Unproven
from edge.protocol.enrolment import Claim, Rotation
from edge.protocol.messages import Hello, Presence, Telemetry
from edge.protocol.signing import NEVER as BEFORE_ALL
from edge.protocol.signing import Opened, Stamp

MAX_EARLY = 10_000  # strangers whose presence is kept until they say who they are
NEVER = 0.0  # when a device was seen of which only a retained card is known
MAX_HELD = 2  # the version a device trains on, and the one before, whose update may still be in its spool


class Roster:
    """The devices of one state folder.

    Args:
        journal: Keeps them over a restart.
        listed: Keys of the configuration, or what reads them anew.
        is_open: Whether devices that are not listed may enrol themselves.
        clock: Unix time in seconds.
        timer: Seconds of any beginning, never set back.
        limits: How many devices, and how fast.
        delivered: Devices that ever had an update accepted.

    Attributes:
        register: Says who may speak for which device.
    """

    def __init__(
        self,
        journal: Journal,
        listed: Mapping[str, str] | Callable[[], Mapping[str, str]],
        is_open: bool,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        *,
        limits: Limits = Limits(),  # noqa: B008 - it is frozen
        delivered: Collection[str] = (),
    ) -> None:
        self._journal = journal
        self.register = Register(journal.access, listed if callable(listed) else lambda: listed, is_open)
        known = journal.devices()
        self._newcomers = Newcomers(limits, timer, known, delivered)
        self._devices = {device.device: device._replace(online=False) for device in known}
        self._changed = {device.device for device in known if device.online}
        self._new: set[str] = set()  # not written down yet, as below
        self._gone: set[str] = set()
        # Of newcomers that have not said who they are, by id and key: nobody takes another's place.
        self._early: dict[tuple[str, str], Opened[Presence]] = {}
        self._hearing = Hearing(known, clock(), timer)
        self._barred = self._find_barred()

    def refresh(self) -> dict[str, str]:
        """Reads anew who may speak, and who has another key or was forgotten.

        Returns:
            The devices that may speak no longer, with the keys they had.
        """
        before = {name: device.key for name, device in self._devices.items() if name not in self._barred}
        self.register.reload()
        self._write_newcomers()
        keys = {device.device: device.key for device in self._journal.devices()}
        self._devices = {
            name: device if device.key == keys[name] else device._replace(key=keys[name], stamps={})
            for name, device in self._devices.items()
            if name in keys
        }
        self._changed &= keys.keys()
        self._newcomers.recount(self._devices.values())
        self._barred = self._find_barred()
        return {
            name: key for name, key in before.items() if name not in self._devices or name in self._barred
        }

    def redeem(self, claim: Claim, fleet: str, coordinator: str, device_id: str, key: str, at: float) -> bool:
        """Lets a device in by a token; see `Register.redeem`."""
        is_new = self.register.redeem(claim, fleet, coordinator, device_id, key, self.key(device_id), at)
        self._barred = self._find_barred()
        return is_new

    def rotate(self, rotations: tuple[Rotation, ...], fleet: str, device_id: str, at: float) -> str:
        """Gives a device another key, and returns it; see `Register.rotate`."""
        key = self.register.rotate(rotations, fleet, device_id, self.key(device_id), at)
        if device_id in self._devices:
            self._devices[device_id] = self._devices[device_id]._replace(key=key, stamps={})
            self._newcomers.recount(self._devices.values())
        self._barred = self._find_barred()
        return key

    def _find_barred(self) -> set[str]:
        return {name for name, device in self._devices.items() if not self.register.admits(name, device.key)}

    def check_key(self, device_id: str, key: str) -> None:
        """Checks that `key` may speak for a device, or for a newcomer; costs nothing.

        Raises:
            Unproven: It may not.
        """
        try:
            self.register.check(device_id, key, self.key(device_id))
        except Rejected as refusal:
            raise Unproven(f"{refusal.detail}; its key is {key}") from refusal
        if (
            device_id not in self._devices
            and not self.register.names(device_id)
            and self._newcomers.is_pressed
        ):
            raise Unproven("too many devices come at a time; it may come again")

    def stamp(self, device_id: str, kind: str) -> Stamp:
        """Returns the latest stamp of a device's messages of a kind."""
        device = self._devices.get(device_id)
        return device.stamps.get(kind, BEFORE_ALL) if device else BEFORE_ALL

    def mark(self, device_id: str, kind: str, stamp: Stamp) -> None:
        """Notes how far an enrolled device has come; it is written down with the rest, at `flush`."""
        device = self._devices.get(device_id)
        if device and device.stamps.get(kind) != stamp:
            self._devices[device_id] = device._replace(stamps={**device.stamps, kind: stamp})
            self._changed.add(device_id)

    def enrol(self, device_id: str, key: str, at: float | None) -> None:
        """Lets `key` speak for a device, from now on no other.

        Args:
            device_id: The device.
            key: Its public key.
            at: Unix time; here and below None where what was retained says nothing of when.

        Raises:
            Rejected: `banned`, or `unknown-device`: it was not let in, has another key, or there is no place
                for it.
        """
        self.register.check(device_id, key, self.key(device_id))
        known = self._devices.get(device_id)
        if known is not None:
            if known.key != key:  # the settings' list names another now
                self._write_newcomers()
                self._journal.access.pin(device_id, key)
                self._devices[device_id] = known._replace(key=key, stamps={})
                self._newcomers.recount(self._devices.values())
                self._barred.discard(device_id)
            return
        is_named = self.register.names(device_id)  # by the owner, who needs no quota
        idle = None if is_named else self._newcomers.admit(key, self._devices, is_here=at is not None)
        if idle:
            self._gone.add(idle.device)
            self._new.discard(idle.device)
            self._changed.discard(idle.device)
            del self._devices[idle.device]
        self._devices[device_id] = Device(device_id, key, at or NEVER, at or NEVER)
        # Written down at the next `flush`: many come at a time, and each write waits for the disk.
        self._new.add(device_id)
        if early := self._early.pop((device_id, key), None):
            self.mark(device_id, "state", early.stamp)
            self.observe(device_id, early, at)

    def deliver(self, device_id: str) -> None:
        """Notes that an update of a device was accepted: its place is its own."""
        self._newcomers.deliver(device_id)

    @property
    def num_delivered(self) -> int:
        """Returns how many devices ever had an update accepted."""
        return self._newcomers.num_delivered

    def has_delivered(self, device_id: str) -> bool:
        """Tells whether an update of a device was ever accepted."""
        return self._newcomers.has_delivered(device_id)

    def count_unlisted(self, device_id: str) -> None:
        """Counts a rejected update of which the journal keeps no more than that."""
        if device_id in self._devices:
            self._change(device_id, None, num_unlisted=self._devices[device_id].num_unlisted + 1)

    def key(self, device_id: str) -> str | None:
        """Returns the pinned key of a device, or None where it has never signed anything."""
        device = self._devices.get(device_id)
        return device.key if device else None

    def has_greeted(self, device_id: str) -> bool:
        """Tells whether a device has ever shown its capability card."""
        device = self._devices.get(device_id)
        return device is not None and device.hello is not None

    def greet(self, hello: Hello, at: float | None) -> None:
        """Takes the capability card of an enrolled device."""
        self._change(hello.device_id, at, hello=hello)

    def observe(self, device_id: str, opened: Opened[Presence], at: float | None) -> bool:
        """Takes a device's presence.

        A device is online before it has said who it is, so a stranger's presence is kept for when it has.

        Args:
            device_id: The device.
            opened: What it has signed.
            at: Unix time.

        Returns:
            Whether it came or went by this.
        """
        known = self._devices.get(device_id)
        if known is None:
            early = self._early.pop((device_id, opened.key), opened)
            later = opened if early.stamp <= opened.stamp else early
            self._early[device_id, opened.key] = later._replace(body=b"")  # as long as a stranger likes
            if len(self._early) > MAX_EARLY:
                del self._early[next(iter(self._early))]
        else:
            self._change(device_id, at, online=opened.record.online)
            return known.online != opened.record.online
        return False

    def is_online(self, device_id: str) -> bool:
        """Tells whether a device is here now."""
        device = self._devices.get(device_id)
        return device is not None and device.online and device_id not in self._barred

    def is_barred(self, device_id: str) -> bool:
        """Tells whether a device that was in the fleet may speak no longer."""
        return device_id not in self._devices or device_id in self._barred

    def online(self) -> list[str]:
        """Returns the devices that are online, by name."""
        return sorted(name for name in self._devices if self.is_online(name))

    def able(self, rank: int) -> list[str]:
        """Returns those online that can train adapters of this rank, as far as they said."""
        return [name for name in self.online() if _can_train(self._devices[name].hello, rank)]

    def follow(self, device_id: str, telemetry: Telemetry, at: float) -> None:
        """Takes a device's progress; strangers are ignored."""
        self._change(device_id, at, telemetry=telemetry)
        self.hold(device_id, telemetry.base_version, at)

    def finish(self, device_id: str, base_version: int, at: float) -> None:
        """Notes that a device's task on a version is over: its update comes."""
        device = self._devices.get(device_id)
        if device and device.telemetry and device.telemetry.base_version <= base_version:
            self._change(device_id, at, telemetry=None)

    def hold(self, device_id: str, version: int, at: float) -> None:
        """Notes that a device downloads a version, or trains on it; strangers are ignored."""
        held = self._devices[device_id].held if device_id in self._devices else ()
        kept = (*(one for one in held if one != version), version)[-MAX_HELD:]
        self._change(device_id, at, held=kept)

    def stray(self, device_id: str, at: float | None) -> None:
        """Notes when a device was at a version that is not here, or None when it is back."""
        known = self._devices.get(device_id)
        if known and at != known.astray:
            self._change(device_id, at if at is not None else known.last_seen, astray=at)

    def held(self, within_s: float) -> set[int]:
        """Returns the versions that devices hold of which something was heard in the last `within_s`."""
        return {
            version
            for name, device in self._devices.items()
            if device.held and self._hearing.is_within(name, within_s)
            for version in device.held
        }

    def settle(self, device_id: str) -> None:
        """Writes a newcomer down now: what it sends is on the disk, and is to be its own after a kill.

        Raises:
            DiskRefused: It is still to be written.
        """
        if device_id in self._new:
            self._write_newcomers()

    def flush(self) -> None:
        """Writes down what changed.

        Raises:
            DiskRefused: It is still to be written.
        """
        self._write_newcomers()
        if not self._changed:
            return
        self._journal.save(self._devices[device_id] for device_id in self._changed)
        self._changed.clear()

    async def flush_beside(self) -> None:
        """Does the same, and has what the disk takes its time for done in a thread.

        Raises:
            DiskRefused: It is still to be written.
        """
        self._write_newcomers()
        names, self._changed = self._changed, set()
        devices = [self._devices[name] for name in names if name in self._devices]
        try:
            if devices:
                await asyncio.to_thread(self._journal.save, devices)
        except BaseException:
            self._changed |= names
            raise

    def _write_newcomers(self) -> None:
        if self._new or self._gone:
            self._journal.exchange(self._gone - self._new, [self._devices[name] for name in self._new])
            self._new.clear()
            self._gone.clear()

    def _change(self, device_id: str, at: float | None, **changes: Any) -> None:
        if device_id in self._devices:
            known = self._devices[device_id]
            last_seen = known.last_seen if at is None else at
            if at is not None:
                self._hearing.hear(device_id)
            self._devices[device_id] = known._replace(last_seen=last_seen, **changes)
            self._changed.add(device_id)


def _can_train(hello: Hello | None, rank: int) -> bool:
    return hello is None or max(hello.ranks, default=0) >= rank
