"""The coordinator's place in its fleet (`edge.delivery.place`), and what its broker has of earlier ones.

The epochs of earlier sessions are heard on the way: above them the new one must be, also where this state
folder is an old backup and knows of none.
"""

import time
from collections.abc import Callable

from edge.delivery.inquiry import Found, Seat, Waits
from edge.delivery.place import Place, describe
from edge.errors import PlaceTaken, ProtocolError
from edge.protocol.messages import Manifest
from edge.protocol.signing import Keyring, Signer, read_signed
from edge.protocol.topics import Topics, VersionTopic
from edge.transport.base import Message, Transport


class Sessions:
    """The earlier sessions of one fleet's coordinator, by the manifests that its broker retains.

    Args:
        fleet: The fleet's name.
        key: The coordinator's public key.

    Attributes:
        epoch: The latest that this key has signed.
        version: Announced in it.
        strangers: Other keys that have signed manifests.
    """

    def __init__(self, fleet: str, key: str) -> None:
        self.epoch, self.version = 0, -1
        self.strangers: set[str] = set()
        self._topics, self._key = Topics(fleet), key
        self._keyring = Keyring()

    @property
    def filters(self) -> tuple[str, ...]:
        """Returns what is to be subscribed to."""
        return (self._topics.version("+"),)

    def hear(self, message: Message) -> None:
        """Takes a manifest.

        Raises:
            ProtocolError: It is none.
        """
        match self._topics.parse(message.topic):
            case VersionTopic(tier=tier) if message.payload:
                opened = self._keyring.open(message.topic, read_signed(message.payload), Manifest)
            case _:
                raise ProtocolError("no manifest")
        manifest = opened.record
        if manifest.tier != tier:
            raise ProtocolError(f"manifest of tier {manifest.tier}")
        if opened.key != self._key:
            self.strangers.add(opened.key)
        elif (manifest.epoch, manifest.version) > (self.epoch, self.version):
            self.epoch, self.version = manifest.epoch, manifest.version


def coordinator_place(
    fleet: str,
    signer: Signer,
    connect: Callable[[], Transport],
    warn: Callable[[str], object],
    clock: Callable[[], float] = time.time,
    waits: Waits = Waits(),  # noqa: B008 - it is frozen
) -> Place:
    """Returns the place of a fleet's coordinator; see `Place`."""
    topics = Topics(fleet)
    seat = Seat(fleet, topics.coordinator, topics.challenge, topics.answer)

    def taken(found: Found, is_running: bool) -> PlaceTaken:
        who = describe_coordinator(found, signer.key)
        if is_running:
            return PlaceTaken(
                f"fleet {fleet}: this coordinator lost its place to {who}; "
                "it has stopped, its state is on disk; run only one of them"
            )
        return PlaceTaken(
            f"fleet {fleet} is served already by {who}; stop that one first, or serve another --fleet"
        )

    return Place(seat, signer, connect, taken, warn, clock, waits)


def describe_coordinator(found: Found, key: str) -> str:
    """Describes another coordinator by what it says of itself.

    Args:
        found: Of an inquiry.
        key: Public, of whoever asked.
    """
    other = found.holder or found.stranger
    if other is None:
        return "another one, from a copy of this state folder"
    shown = key if found.holder else found.stranger_key
    copy = ", from a copy of this state folder" if found.holder else ""
    return f"the coordinator{describe(other)}, with key {shown[:16]}…, at version {other.version}{copy}"
