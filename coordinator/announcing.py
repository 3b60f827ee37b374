"""Tells the fleet's devices what there is: that a coordinator is here, and its current version.

Manifests are retained, one for each rank tier. They are published again every minute, as a broker without
persistence forgets them when it restarts, and to a device that asks for a blob which is not here.
"""

from collections.abc import Callable, Iterator

from coordinator.config import CoordinatorConfig
from coordinator.ledger.head import Head
from coordinator.ledger.versions import VersionStore
from edge.protocol.messages import Blob, Manifest
from edge.protocol.signing import sign_message
from edge.protocol.tiers import tier_name
from edge.protocol.topics import Topics
from edge.transport.base import BirthAndWill, Transport
from edge.transport.presence import session_presence

EVERY_S = 60.0


def coordinator_presence(fleet: str, epoch: int) -> BirthAndWill:
    """Returns what the transport says of the coordinator while connected, and after an unclean end."""
    return session_presence(Topics(fleet).coordinator, epoch)


class Announcer:
    """Publishes the current version's manifests.

    Args:
        config: The coordinator's settings, as `settle` gives them.
        base: Fingerprint of the base model.
        key: Private, of the coordinator.
        versions: Hold the blobs that manifests name.
        head: The version to announce.
        epoch: Of this session.
        known: The journal's last number when the session began.
        transport: Of the coordinator, entered when anything is announced.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        *,
        base: str,
        key: bytes,
        versions: VersionStore,
        head: Head,
        epoch: int,
        known: int,
        transport: Transport,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._topics = Topics(config.fleet)
        self._base = base
        self._key = key
        self._versions = versions
        self._head = head
        self._epoch = epoch
        self._known = known
        self._transport = transport
        self._clock = clock
        self._announced_at = 0.0

    async def announce(self) -> None:
        """Publishes a manifest for every rank tier, retained."""
        for manifest in self._manifests():
            topic = self._topics.version(manifest.tier)
            await self._transport.publish(topic, sign_message(manifest, self._key), retain=True)
        self._announced_at = self._clock()

    async def repeat(self, every_s: float = EVERY_S) -> bool:
        """Announces again where the last time was `every_s` ago or more; returns whether it was."""
        is_due = self._clock() - self._announced_at >= every_s
        if is_due:
            await self.announce()
        return is_due

    def _manifests(self) -> Iterator[Manifest]:
        version, config = self._head.version, self._config
        for rank in config.ranks:
            blob = self._blob(version.tiers[tier_name(rank)])
            yield Manifest(
                fleet=config.fleet,
                tier=tier_name(rank),
                version=version.version,
                parent=version.parent,
                sha256=blob.sha256,
                size_bytes=blob.size_bytes,
                chunk_bytes=config.chunk_bytes,
                encoding=config.encoding,
                base=self._base,
                rank=rank,
                space=config.method_in_force.space,
                recipe=config.recipe_in_force(rank),
                sketch=self._blob(self._versions.sketch) if self._versions.sketch else None,
                epoch=self._epoch,
                known=self._known,
            )

    def _blob(self, sha256: str) -> Blob:
        return Blob(sha256=sha256, size_bytes=self._versions.objects.size(sha256))
