"""Tells the fleet's devices what there is: that a coordinator is here, and its current version.

Manifests are retained, one for each rank tier. They are published again every minute, as a broker without
persistence forgets them when it restarts, and to a device that asks for a blob which is not here.
"""

from collections.abc import AsyncIterator, Callable

from coordinator.config import CoordinatorConfig
from coordinator.ledger.head import Head
from coordinator.ledger.state import CoordinatorState
from edge.delivery.trees import Trees
from edge.protocol.messages import Blob, Manifest
from edge.protocol.sealing import sealing_public_key
from edge.protocol.signing import Signer
from edge.protocol.tiers import tier_name
from edge.protocol.topics import Topics
from edge.transport.base import Transport
from edge.transport.presence import SessionPresence

EVERY_S = 60.0


def coordinator_presence(fleet: str, signer: Signer) -> SessionPresence:
    """Returns what makes the coordinator's birth and will of each connection."""
    return SessionPresence(Topics(fleet).coordinator, signer)


class Announcer:
    """Publishes the current version's manifests.

    Args:
        config: The coordinator's settings, as `settle` gives them.
        state: Holds the blobs that manifests name.
        trees: Of these blobs.
        head: The version to announce.
        signer: Of this session, which begins now.
        transport: Of the coordinator, entered when anything is announced.
        timer: Seconds of any beginning, never set back.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        state: CoordinatorState,
        trees: Trees,
        head: Head,
        signer: Signer,
        transport: Transport,
        timer: Callable[[], float],
    ) -> None:
        self._seal = sealing_public_key(state.key) if config.sealing == "hpke" else None
        self._config, self._state, self._head, self._signer = config, state, head, signer
        self._trees = trees
        self._transport, self._timer = transport, timer
        self._topics = Topics(config.fleet)
        self._known = state.journal.last_seq()
        self._announced_at = float("-inf")

    @property
    def largest_bytes(self) -> int:
        """Returns the size of the largest file that is announced."""
        objects = self._state.versions.objects
        return max(objects.size(sha256) for sha256 in self._head.version.tiers.values())

    async def announce(self) -> None:
        """Publishes a manifest for every rank tier, retained."""
        before, self._announced_at = self._announced_at, self._timer()  # at once: `repeat` may come meanwhile
        try:
            async for manifest in self._manifests():
                topic = self._topics.version(manifest.tier)
                await self._transport.publish(topic, self._signer.seal(topic, manifest), retain=True)
        except BaseException:
            self._announced_at = before
            raise

    async def repeat(self, every_s: float = EVERY_S) -> bool:
        """Announces again where the last time was `every_s` ago or more; returns whether it was."""
        is_due = self._timer() - self._announced_at >= every_s
        if is_due:
            await self.announce()
        return is_due

    async def _manifests(self) -> AsyncIterator[Manifest]:
        version, config, sketch = self._head.version, self._config, self._state.versions.sketch
        for rank in config.ranks:
            blob = await self._blob(version.tiers[tier_name(rank)])
            yield Manifest(
                fleet=config.fleet,
                tier=tier_name(rank),
                version=version.version,
                parent=version.parent,
                sha256=blob.sha256,
                root=blob.root,
                size_bytes=blob.size_bytes,
                chunk_bytes=config.chunk_bytes,
                encoding=config.encoding,
                base=self._state.journal.meta("base") or "",
                rank=rank,
                space=config.method_in_force.space,
                recipe=config.recipe_in_force(rank),
                sketch=await self._blob(sketch) if sketch else None,
                epoch=self._signer.epoch,
                privacy=config.privacy,
                seal=self._seal,
                known=self._known,
            )

    async def _blob(self, sha256: str) -> Blob:
        tree = await self._trees.of(sha256)
        return Blob(sha256=sha256, root=tree.root, size_bytes=self._state.versions.objects.size(sha256))
