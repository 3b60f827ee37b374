"""Which version to train on next: the current one, in the largest tier that fits, as often as it may be."""

import asyncio
import contextlib

from edge.delivery.window import heard
from edge.device.budget import Budget
from edge.device.learning.proof import Proof
from edge.device.session import Session
from edge.device.task import Task
from edge.errors import BrokerRefused, ConfigError
from edge.protocol.messages import Manifest

SETTLE_S = 0.2  # the tiers of a version are announced one after the other


def refusal(budget: Budget, task: Task) -> str | None:
    """Tells in one line why this device does not do a task, for its privacy's sake; None where it does."""
    return budget.refusal(task.key, task.manifest.privacy, task.manifest.recipe.steps)


class Offers:
    """What the fleet offers this device."""

    def __init__(self, session: Session, proof: Proof) -> None:
        self._session = session
        self._proof = proof
        self._refusal = ""  # why the version on offer is not trained on

    async def next_task(self) -> Task:
        """Waits for a version that may be trained on; the task is in the state folder when it returns.

        Raises:
            BaseModelError: The fleet trains another base model.
            ConfigError: The version is larger than this device takes.
            DiskRefused: The task was not noted.
        """
        inbox, max_rank = self._session.inbox, self._session.config.max_rank
        told = ""
        while True:
            manifest = inbox.choose(max_rank)
            if manifest and manifest.rank < max_rank:
                await asyncio.sleep(SETTLE_S)
                manifest = inbox.choose(max_rank)
            task = await self._offer(manifest) if manifest else None
            if task:
                epoch, newest = inbox.seen
                self._session.state.update(
                    task=task,
                    coordinator_key=inbox.coordinator_key,
                    epoch=epoch,
                    newest=newest,
                    heard=dict(inbox.heard),
                )
                return task
            if (reason := self._waits_for(manifest)) != told:
                self._session.say("waiting", reason)
                told = reason
            await self.changed()

    async def _offer(self, manifest: Manifest) -> Task | None:
        """Returns the next attempt at `manifest`, where its recipe and the spool leave room for one."""
        memory, config = self._session.state.memory, self._session.config
        if manifest.size_bytes > config.max_download_bytes:  # before memory or disk is taken for it
            raise ConfigError(
                f"version {manifest.version} of fleet {manifest.fleet} has {manifest.size_bytes} bytes, "
                f"expected at most {config.max_download_bytes}; raise max_download_bytes to follow this fleet"
            )
        if not await self._proof.holds(manifest):
            return None
        self._refusal = ""
        is_known = manifest.epoch == memory.session or memory.sha256 in ("", manifest.sha256)
        attempt = memory.attempts if manifest.version == memory.version and is_known else 0
        is_exhausted = 0 < manifest.recipe.attempts <= attempt
        is_crowded = len(self._session.spool.entries()) >= config.max_pending
        if is_exhausted or is_crowded:
            return None
        task = Task(manifest, attempt)
        self._refusal = refusal(self._session.budget, task) or ""
        return None if self._refusal else task

    def _waits_for(self, manifest: Manifest | None) -> str:
        config, num_pending = self._session.config, len(self._session.spool.entries())
        if manifest and num_pending >= config.max_pending:
            return f"for the receipts of {num_pending} updates"
        if manifest and self._refusal:
            return f"for other terms than version {manifest.version} has: {self._refusal}"
        if manifest:
            return f"for a version after {manifest.version}"
        if ranks := self._session.inbox.ranks():
            return f"for a tier of rank {config.max_rank} or less; the fleet has {', '.join(map(str, ranks))}"
        return f"for the first version of fleet {config.fleet}"

    async def changed(self) -> None:
        """Waits until offers may have changed; asks for the retained manifests again when nothing comes."""
        session = self._session
        if not await heard(session.wakeups.offers_changed, 6 * session.config.patience_s):
            with contextlib.suppress(BrokerRefused):  # it allowed it at the start: what came is here
                await session.transport.subscribe(session.topics.version("+"))
