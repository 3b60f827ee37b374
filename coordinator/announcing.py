"""Tells the fleet's devices what there is: that a coordinator is here, and its current version.

Manifests are retained, one for each rank tier. They are published again every minute, as a broker without
persistence forgets them when it restarts, and to a device that asks for a blob which is not here.
"""

from collections.abc import Callable, Iterator

from coordinator.config import CoordinatorConfig
from coordinator.ledger.head import Head
from coordinator.ledger.state import CoordinatorState
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
        state: Holds the key, and the blobs that manifests name.
        head: The version to announce.
        epoch: Of this session, which begins now.
        transport: Of the coordinator, entered when anything is announced.
        timer: Seconds of any beginning, never set back.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        state: CoordinatorState,
        head: Head,
        epoch: int,
        transport: Transport,
        timer: Callable[[], float],
    ) -> None:
        self._config, self._state, self._head, self._epoch = config, state, head, epoch
        self._transport, self._timer = transport, timer
        self._topics = Topics(config.fleet)
        self._known = state.journal.last_seq()
        self._announced_at = float("-inf")

    async def announce(self) -> None:
        """Publishes a manifest for every rank tier, retained."""
        for manifest in self._manifests():
            topic = self._topics.version(manifest.tier)
            await self._transport.publish(topic, sign_message(manifest, self._state.key), retain=True)
        self._announced_at = self._timer()

    async def repeat(self, every_s: float = EVERY_S) -> bool:
        """Announces again where the last time was `every_s` ago or more; returns whether it was."""
        is_due = self._timer() - self._announced_at >= every_s
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
                base=self._state.journal.meta("base") or "",
                rank=rank,
                space=config.method_in_force.space,
                recipe=config.recipe_in_force(rank),
                sketch=self._blob(self._state.versions.sketch) if self._state.versions.sketch else None,
                epoch=self._epoch,
                known=self._known,
            )

    def _blob(self, sha256: str) -> Blob:
        return Blob(sha256=sha256, size_bytes=self._state.versions.objects.size(sha256))
