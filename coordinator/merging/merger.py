"""From the buffer to the next version: merged in a thread, committed in one transaction.

A buffer that cannot be merged must not come up again for ever: its updates are discarded, with the reason,
and the version stays as it was. They were receipted long ago, so their devices are told nothing.
"""

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from converters.adapter import LoraAdapter
from converters.errors import AdapterError
from coordinator.config import CoordinatorConfig
from coordinator.errors import MergeError, UnreadableUpdate
from coordinator.ledger.head import Standing
from coordinator.ledger.records import Update, Version, VersionFiles
from coordinator.ledger.state import CoordinatorState
from coordinator.merging.ages import Ages
from coordinator.strategies.choice import choose_strategy
from coordinator.strategies.contract import (
    Account,
    Calibrator,
    Contribution,
    Pace,
    Report,
    State,
    Strategy,
    Waiting,
)
from coordinator.strategies.tiers import dispatch
from edge.errors import ConfigError, DiskRefused, MissingObject, ProtocolError
from edge.protocol.codec import decode_adapter
from edge.protocol.sealing import Context, open_update
from edge.protocol.tiers import tier_name

LOG = logging.getLogger(__name__)


class Ready(NamedTuple):
    """What may be merged now, and what is waited for."""

    buffer: list[Update]  # oldest first; empty while the strategy waits
    pace: Pace


class Merger:
    """Makes versions.

    Args:
        config: Names the strategy.
        state: Holds the buffer and the versions.
        clock: Unix time in seconds.
        calibrator: For strategies that ask for the calibration set.
        strategy: Instead of the one that `config` names.
        timer: Seconds of any beginning, never set back.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        state: CoordinatorState,
        clock: Callable[[], float],
        calibrator: Calibrator | None = None,
        strategy: Strategy | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._state = state
        self._clock = clock
        self._strategy = strategy or choose_strategy(config, calibrator)
        self._ages = Ages(clock, timer)

    @property
    def strategy(self) -> str:
        """Returns its name."""
        return self._strategy.name

    def ready(self, standing: Standing, able: Collection[str]) -> Ready:
        """Finds the updates to merge now; none while the strategy waits for more.

        Args:
            standing: Where the fleet stands.
            able: Devices that are online and could send an update.
        """
        waiting = self._state.journal.waiting()
        orphans = [one.id for one in waiting if one.base_version not in standing.lineage]
        if orphans:  # journalled just after another process rolled back
            detail = f"its base is no ancestor of version {standing.version}"
            self._state.journal.discard(orphans, "rolled-back", detail)
            waiting = [one for one in waiting if one.id not in orphans]
        outline = [
            Waiting(one.device, standing.staleness(one.base_version), waited_s, one.seconds)
            for one, waited_s in zip(waiting, self._ages.of(waiting), strict=True)
        ]
        devices = {one.device for one in outline if one.staleness == 0} | set(able)
        pace = self._strategy.pace(outline, len(devices))
        return Ready(waiting[: pace.take], pace)

    def renew(self, old: Version) -> Version | None:
        """Makes a version of the files of `old`, where an update on it was lost and nothing waits.

        Its device was told that the update counts, and waits for a version to go on from.

        Returns:
            None where nobody waits for one, or somebody rolled back.

        Raises:
            DiskRefused: Nothing is changed.
        """
        journal = self._state.journal
        if not journal.is_stranded(old.version) or journal.waiting():  # hardly ever is one stranded
            return None
        report = Report(self._strategy.name, self._config.method_in_force.space, (), 0.0, step_scale=0.0)
        files = VersionFiles(old.master, old.remainder, old.tiers, old.carried, {})
        return self._state.versions.add(files, old.version, report, self._clock())

    async def make(
        self, old: Version, buffer: list[Update], standing: Standing, held: Callable[[], Collection[int]]
    ) -> Version | None:
        """Makes and commits the version after `old`; None, and nothing changed, where somebody rolled back.

        Args:
            old: The current version.
            buffer: What `ready` said.
            standing: Where the fleet stands.
            held: Versions whose files stay however old they are; asked when the new one is made, for updates
                come in while it is.

        Raises:
            MergeError: The strategy cannot merge this buffer; see `discard`.
            BackendError: The calibration set cannot be read with an adapter; nothing is changed.
            DiskRefused: Nothing is changed.
        """
        versions, read = self._state.versions, list[str]()
        # Many updates begin from one version.
        load, tiers = (
            functools.cache(versions.load),
            functools.cache(lambda number: versions.version(number).tiers),
        )
        contributions = [
            self._contribution(update, tiers(update.base_version)[update.tier], standing, load, read)
            for update in buffer
        ]
        accounts = self._state.versions.accounts()
        report, files = await asyncio.to_thread(self._merge, old, accounts, contributions)
        if len(read) > len(buffer):
            LOG.info("payloads of %d updates were read %d times: memory held too few", len(buffer), len(read))
        made = await asyncio.to_thread(versions.add, files, old.version, report, self._clock())
        if made is not None:
            await asyncio.to_thread(self._tidy, buffer, held())
        return made

    def _tidy(self, buffer: list[Update], held: Collection[int]) -> None:
        """Removes what the new version makes needless; what the disk refuses to goes with the next one."""
        try:
            self._state.payloads.remove(update.id for update in buffer)
            self._state.versions.collect(self._config.keep_versions, held)
        except DiskRefused as error:  # the version is made, and must be announced
            LOG.warning("%s", error)

    def discard(self, buffer: list[Update], error: MergeError) -> list[Update]:
        """Takes what cannot be merged out of the buffer for good: the update at fault, or all of them.

        Returns:
            What was taken out.
        """
        gone = [one for one in buffer if not isinstance(error, UnreadableUpdate) or one.id == error.update]
        self._state.journal.discard([one.id for one in gone], "unmergeable", str(error))
        with contextlib.suppress(DiskRefused):  # they go at the next start
            self._state.payloads.remove(update.id for update in gone)
        return gone

    def _merge(
        self, old: Version, accounts: Mapping[str, Account], contributions: list[Contribution]
    ) -> tuple[Report, VersionFiles]:
        """Merges, in a thread: the journal is not touched."""
        versions = self._state.versions
        state = versions.state(old, accounts)
        previous = {name: versions.load(sha256) for name, sha256 in old.tiers.items()}
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told as such
                state, report = self._strategy.merge(state, contributions)
                tiers = self._tiers(state, previous)
        except (AdapterError, np.linalg.LinAlgError) as error:
            raise MergeError(f"merging {len(contributions)} updates: {error}") from error
        return report, versions.store(state, tiers)

    def _tiers(self, state: State, previous: Mapping[str, LoraAdapter]) -> dict[str, LoraAdapter]:
        config = self._config
        return {
            name: dispatch(config.method_in_force, state, rank, previous[name], config.remainder_rank)
            for rank in config.ranks
            for name in [tier_name(rank)]
        }

    def _delta(self, update: Update, dispatched: str) -> bytes:
        """Reads an update's encoded delta, and opens it where it is kept sealed."""
        payload = self._state.payloads.get(update.id)
        if not update.is_sealed:
            return payload
        place = update.device, update.base_version, update.attempt, dispatched
        return open_update(payload, self._state.key, Context(self._config.fleet, *place)).delta

    def _contribution(
        self,
        update: Update,
        dispatched: str,
        standing: Standing,
        load: Callable[[str], LoraAdapter],
        read: list[str],
    ) -> Contribution:
        """Describes an update to the strategy; ids of those whose payload is read go to `read`."""
        like = standing.tiers[update.tier]

        def load_delta() -> LoraAdapter:
            read.append(update.id)
            try:
                return decode_adapter(self._delta(update, dispatched), like=like)
            except (MissingObject, ProtocolError) as error:
                raise UnreadableUpdate(update.id, f"its payload is gone or damaged: {error}") from error

        def load_base() -> LoraAdapter:
            try:
                return load(dispatched)
            except (MissingObject, AdapterError) as error:
                what = f"version {update.base_version}, which it began from, is gone or damaged"
                raise UnreadableUpdate(update.id, f"{what}: {error}") from error

        return Contribution(
            update=update.id,
            device=update.device,
            base_version=update.base_version,
            staleness=standing.staleness(update.base_version),
            num_examples=update.num_examples,
            load_delta=load_delta,
            load_base=load_base,
        )


def check_calibration(
    config: CoordinatorConfig, calibrator: Calibrator | None, adapter: LoraAdapter
) -> float | None:
    """Returns the loss that the first step begins from; refuses what would keep steps from being judged.

    Args:
        config: Names the strategy.
        calibrator: The calibration set.
        adapter: The current version's.

    Returns:
        Nats per label; None where the strategy asks for no calibration set.

    Raises:
        ConfigError: The strategy asks for a calibration set and there is none, or its loss is no number.
    """
    if not config.method_in_force.needs_calibration:
        return None
    if calibrator is None:
        raise ConfigError(
            f"strategy {config.strategy_in_force} asks for a calibration set; set calibration_data"
        )
    loss = calibrator.loss(adapter)
    if not math.isfinite(loss):
        raise ConfigError(
            f"{config.calibration_data}: the current version's loss on it is {loss}, expected a number; "
            "give other examples, or another base model"
        )
    return loss
