"""What comes in from the broker: checked, kept where it is a manifest, else handed to whom it concerns.

Nothing is believed that the coordinator's key has not signed. Without a configured key the first that signs a
manifest of this fleet is taken; the client pins it with its first task. Manifests of a session of the
coordinator's that another has followed are left out (`edge.device.epochs`).
"""

import asyncio
from collections.abc import Callable

from edge.delivery.download import Download
from edge.delivery.upload import Upload
from edge.errors import ProtocolError
from edge.protocol.messages import Manifest, Receipt
from edge.protocol.signing import open_signed
from edge.protocol.topics import BlobTopic, ReceiptTopic, Topics, VersionTopic
from edge.transport.base import Message


class Inbox:
    """The receiving side of one client.

    Attributes:
        coordinator_key: The only signer that is believed; None until the first manifest.
        news: Set when a manifest came.
        seen: Epoch and version of the newest manifest, in this order.
        known: The latest verdict that the coordinator's journal held when its session began.
        turned: Set when a manifest of a later epoch came.
        download: Gets the chunks of its blob.
        upload: Gets the receipts of its update.
    """

    def __init__(
        self,
        fleet: str,
        device_id: str,
        coordinator_key: str | None,
        warn: Callable[[str], None],
        seen: tuple[int, int] = (0, -1),
    ) -> None:
        self.coordinator_key = coordinator_key
        self.seen = seen
        self.known = 0
        self.news = asyncio.Event()
        self.turned = asyncio.Event()
        self.download: Download | None = None
        self.upload: Upload | None = None
        self._fleet = fleet
        self._topics = Topics(fleet)
        self._device_id = device_id
        self._warn = warn
        self._manifests: dict[str, Manifest] = {}

    def receive(self, message: Message) -> None:
        """Takes one message; what breaks the contract is told and left out."""
        try:
            match self._topics.parse(message.topic):
                case VersionTopic() as topic:
                    self._take_manifest(topic.tier, message.payload)
                case BlobTopic() as topic if self.download and topic.sha256 == self.download.sha256:
                    self.download.receive(topic.number, message.payload)
                case ReceiptTopic(device_id=self._device_id):
                    self._take_receipt(message.payload)
        except ProtocolError as error:
            self._warn(f"{message.topic}: ignored: {error}")

    def choose(self, max_rank: int) -> Manifest | None:
        """The current version in the largest tier of at most `max_rank`."""
        fitting = [manifest for manifest in self._manifests.values() if manifest.rank <= max_rank]
        return max(fitting, key=lambda manifest: (manifest.version, manifest.rank), default=None)

    def rival(self, manifest: Manifest) -> Manifest | None:
        """What the coordinator announces now in the tier of `manifest`, or else in any."""
        newest = max(self._manifests.values(), key=lambda one: one.version, default=None)
        same = self._manifests.get(manifest.tier)
        return same if same and newest and same.version == newest.version else newest

    def ranks(self) -> list[int]:
        """Of all tiers that the fleet offers."""
        return sorted(manifest.rank for manifest in self._manifests.values())

    def _take_manifest(self, tier: str, payload: bytes) -> None:
        if not payload:
            self._manifests.pop(tier, None)  # the fleet no longer offers this tier
            return
        manifest, key = open_signed(payload, Manifest)
        if (manifest.fleet, manifest.tier) != (self._fleet, tier):
            raise ProtocolError(f"manifest of fleet {manifest.fleet}, tier {manifest.tier}")
        self.coordinator_key = self.coordinator_key or key
        self._check_signer(key)
        if manifest.epoch < self.seen[0]:
            raise ProtocolError(
                f"version {manifest.version} is of epoch {manifest.epoch}, which was followed by "
                f"{self.seen[0]}: it is late or sent again; where no later one comes, set the coordinator's "
                "clock, which is behind, and restart it"
            )
        if manifest.epoch > self.seen[0]:
            self._turn(manifest)
        if manifest.version >= self.seen[1]:  # an older one was only late
            self.seen = (manifest.epoch, manifest.version)
            self._manifests[tier] = manifest
            self.news.set()

    def _turn(self, manifest: Manifest) -> None:
        """Begins anew with a later epoch's first manifest; what was asked of the earlier is asked again."""
        self.seen = (manifest.epoch, manifest.version)
        self.known = manifest.known
        self._manifests.clear()
        self.turned.set()
        if self.download:
            self.download.interrupt()
        if self.upload:
            self.upload.interrupt()

    def _take_receipt(self, payload: bytes) -> None:
        receipt, key = open_signed(payload, Receipt)
        self._check_signer(key)
        if self.upload and receipt.update == self.upload.header.update:
            self.upload.receive(receipt)

    def _check_signer(self, key: str) -> None:
        if key != self.coordinator_key:
            raise ProtocolError(
                f"signed by {key}, the coordinator's key is {self.coordinator_key}; "
                "if it was replaced on purpose, join with a new state folder"
            )
