"""What comes in from the broker: checked, kept where it is a manifest, else handed to whom it concerns.

Nothing is believed that the coordinator's key has not signed. Without a configured key the first that signs a
manifest of this fleet is taken; the client pins it with its first task. What its signer has followed by
something later on the same topic is left out, over restarts too; so are manifests of a session of the
coordinator's that another has followed (`edge.device.epochs`).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from edge.device.wakeups import Wakeups
from edge.errors import ProtocolError, Repeated, Unproven
from edge.protocol.enrolment import AccessNotice
from edge.protocol.messages import Manifest, Receipt
from edge.protocol.rights import OLD_ROOT
from edge.protocol.signing import NEVER, Keyring, Opened, R, Stamp, check_order, read_signed, stamp_of
from edge.protocol.topics import (
    AccessTopic,
    BlobTopic,
    DeviceChallengeTopic,
    ReceiptTopic,
    StateTopic,
    Topics,
    VersionTopic,
)
from edge.transport.base import Message

OLD_MANIFEST = b'{"body":{'  # what is signed begins so in wire version 1; the notice for its devices does not


class Inbox:
    """The receiving side of one client.

    Args:
        fleet: The fleet's name.
        device_id: Whose receipts are taken.
        coordinator_key: The only signer that is believed; None takes the first manifest's.
        wakeups: Get what manifests change.
        on_chunk: Gets every blob's chunks, with the blob's sha256 and their number.
        on_receipt: Gets every receipt of this device that the coordinator has signed.
        on_access: Gets what the coordinator says of this device's key.
        warn: Gets what is wrong with a message.
        on_own: Gets what is published under this device's name: its presence, and who asks for it.
        seen: Epoch and version of the newest manifest of an earlier run.
        heard: The latest stamps of an earlier run, by kind of topic.

    Attributes:
        coordinator_key: The only signer that is believed; None until the first manifest.
        seen: Epoch and version of the newest manifest, in this order.
        left: The newest version of the epoch before the one that turned last; -1 where there was none.
        known: The latest verdict that the coordinator's journal held when its session began.
        heard: The coordinator's latest stamp on each of its topics.
    """

    def __init__(
        self,
        fleet: str,
        device_id: str,
        coordinator_key: str | None,
        *,
        wakeups: Wakeups,
        on_chunk: Callable[[str, int, bytes], None],
        on_receipt: Callable[[Receipt], None],
        on_access: Callable[[AccessNotice], None],
        warn: Callable[[str], None],
        on_own: Callable[[Message], None] = lambda message: None,
        seen: tuple[int, int] = (0, -1),
        heard: Mapping[str, Stamp] = MappingProxyType({}),
    ) -> None:
        self.coordinator_key = coordinator_key
        self.seen = seen
        self.left = -1
        self.known = 0
        self.heard = dict(heard)
        self._keyring = Keyring()
        self._fleet = fleet
        self._topics = Topics(fleet)
        self._device_id = device_id
        self._wakeups = wakeups
        self._on_chunk = on_chunk
        self._on_receipt = on_receipt
        self._on_access = on_access
        self._on_own = on_own
        self._warn = warn
        self._manifests: dict[str, Manifest] = {}
        self._is_older_told = False

    def receive(self, message: Message) -> None:
        """Takes one message; what breaks the contract is told and left out."""
        if message.topic.startswith(f"{OLD_ROOT}/"):
            self._notice_older_wire(message)
            return
        try:
            match self._topics.parse(message.topic):
                case BlobTopic() as topic:
                    self._on_chunk(topic.sha256, topic.number, message.payload)
                case VersionTopic() as topic if message.payload:
                    self._take_manifest(topic.tier, message)
                case StateTopic(device_id=self._device_id) | DeviceChallengeTopic(device_id=self._device_id):
                    self._on_own(message)
                case ReceiptTopic(device_id=self._device_id):
                    self._on_receipt(self._open(message, Receipt, "receipt").record)
                case AccessTopic(device_id=self._device_id):
                    self._on_access(self._open(message, AccessNotice, "access").record)
        except Repeated:
            return
        except ProtocolError as error:
            self._warn(f"{message.topic}: ignored: {error}")

    def choose(self, max_rank: int) -> Manifest | None:
        """Returns the current version in the largest tier of at most `max_rank`."""
        fitting = [manifest for manifest in self._manifests.values() if manifest.rank <= max_rank]
        return max(fitting, key=lambda manifest: (manifest.version, manifest.rank), default=None)

    def rival(self, manifest: Manifest) -> Manifest | None:
        """Returns what the coordinator announces now in the tier of `manifest`, or else in any."""
        newest = max(self._manifests.values(), key=lambda one: one.version, default=None)
        same = self._manifests.get(manifest.tier)
        return same if same and newest and same.version == newest.version else newest

    def ranks(self) -> list[int]:
        """Returns the ranks of all offered tiers."""
        return sorted(manifest.rank for manifest in self._manifests.values())

    def _notice_older_wire(self, message: Message) -> None:
        """Tells once that this fleet's coordinator is of wire version 1, where none of the present one is."""
        if message.payload.startswith(OLD_MANIFEST) and not self._manifests and not self._is_older_told:
            self._is_older_told = True
            self._warn(f"fleet {self._fleet} speaks wire version 1: update tunefleet on its coordinator")

    def _open(self, message: Message, kind: type[R], slot: str, *, again: bool = False) -> Opened[R]:
        """Returns what the coordinator has signed, where it has signed nothing later on this topic.

        Args:
            message: As it came.
            kind: Of record.
            slot: Under which its latest stamp is kept.
            again: Whether the latest itself is taken again: what is retained comes with each subscription.
        """
        signed = read_signed(message.payload)
        if self.coordinator_key is not None:
            self._check_signer(signed.key)
        elif kind is not Manifest:
            raise Unproven(f"{kind.__name__} came before any manifest: nobody knows yet who coordinates")
        stamp = stamp_of(signed)
        check_order(stamp, self.heard.get(slot, NEVER), kind.__name__, again=again)
        opened = self._keyring.open(message.topic, signed, kind)
        self.coordinator_key = self.coordinator_key or signed.key
        self.heard[slot] = stamp
        return opened

    def _take_manifest(self, tier: str, message: Message) -> None:
        manifest = self._open(message, Manifest, f"version/{tier}", again=True).record
        if (manifest.fleet, manifest.tier) != (self._fleet, tier):
            raise ProtocolError(f"manifest of fleet {manifest.fleet}, tier {manifest.tier}")
        if manifest.epoch < self.seen[0]:
            raise ProtocolError(
                f"version {manifest.version} is of epoch {manifest.epoch}, which was followed by "
                f"{self.seen[0]}: it is late or sent again; where no later one comes, set the coordinator's "
                "clock, which is behind, and restart it"
            )
        if manifest.epoch > self.seen[0]:
            if not self._wakeups.epoch_turned.is_set():  # else nobody has noticed the last turn yet
                self.left = self.seen[1]
            self.seen = (manifest.epoch, manifest.version)
            self.known = manifest.known
            self._manifests.clear()
            self._wakeups.epoch_turned.set()
        if manifest.version >= self.seen[1]:  # an older one was only late
            if manifest.version > self.seen[1]:
                self._wakeups.version_rose.set()
            self.seen = (manifest.epoch, manifest.version)
            self._manifests[tier] = manifest
            self._wakeups.offers_changed.set()

    def _check_signer(self, key: str) -> None:
        if key != self.coordinator_key:
            raise ProtocolError(
                f"signed by {key}, the coordinator's key is {self.coordinator_key}; "
                "if it was replaced on purpose, join with a new state folder"
            )
