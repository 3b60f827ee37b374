"""The coordinator: announces versions, takes updates in, and makes the next version when it is time.

Everything runs in one event loop around a `Transport`; what takes long (checking a payload, merging,
scoring) runs in a thread beside it. The journal is the truth: a coordinator that is killed at any point goes
on where it was, and what was accepted is still in the buffer. No message ends the loop: bad ones are
rejected, refused or dropped, and said so.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from msgspec import structs

from converters.adapter import LoraAdapter
from converters.errors import TunefleetError
from converters.masking import leading_rows
from coordinator.config import CoordinatorConfig
from coordinator.errors import MergeError
from coordinator.first_version import found_fleet
from coordinator.initial_adapter import Beginning, coverage_line, describe, settle
from coordinator.intake.admission import Present, Rules
from coordinator.intake.arrivals import Arrivals
from coordinator.intake.open_uploads import Uploads
from coordinator.intake.roster import Roster
from coordinator.intake.updates import Desk, Intake
from coordinator.ledger.journal import Update
from coordinator.ledger.retention import Holding
from coordinator.ledger.state import CoordinatorState
from coordinator.ledger.versions import Version
from coordinator.merging.merger import Merger, check_calibration
from coordinator.merging.pace import PaceTeller, describe_pace
from coordinator.observers.events import teller
from coordinator.observers.status import tell_merge
from coordinator.place import Place
from coordinator.publisher import Publisher
from coordinator.strategies.base import Calibrator, Strategy
from edge.errors import BackendError, DiskFull, ProtocolError
from edge.events import Show
from edge.protocol.messages import (
    Blob,
    Manifest,
    Presence,
    Telemetry,
    Want,
    decode_message,
    encode_message,
)
from edge.protocol.signing import public_key, sign_message
from edge.protocol.tiers import tier_name
from edge.protocol.topics import (
    ChallengeTopic,
    ChunkTopic,
    CoordinatorTopic,
    HeaderTopic,
    HelloTopic,
    StateTopic,
    TelemetryTopic,
    Topics,
    WantTopic,
)
from edge.transport import base as transports
from edge.transport.base import Message, Transport

POLL_S = 0.25  # how soon a rollback by another process, or a time budget that ran out, is noticed
SETTLE_S = 2.0  # until it is known who is here; only where updates wait from before
RETRY_S = 5.0  # after a full disk, or a calibration set that could not be read
ANNOUNCE_EVERY_S = 60.0  # a broker without persistence forgets what is retained when it restarts
ANNOUNCE_AGAIN_S = 5.0  # at the earliest, to a device that asks for what is not here
SAY_EVERY_S = 60.0
MAX_FAULTS = 1000


class Quality(NamedTuple):
    """How good a version is on the coordinator's evaluation data."""

    loss: float  # nats per label
    exact: float  # share of examples reproduced exactly


Score = Callable[[LoraAdapter], Quality]


def coordinator_presence(fleet: str, epoch: int) -> transports.Presence:
    """What the coordinator's transport says of it while connected, and after an unclean end."""
    birth, will = (encode_message(Presence(online=online, epoch=epoch)) for online in (True, False))
    return transports.Presence(Topics(fleet).coordinator, birth, will)


class Coordinator:
    """One fleet's coordinator; `run` once.

    Args:
        config: Its settings.
        state: Its state folder, entered.
        transport: Not entered yet; with `coordinator_presence`.
        place: Its claim to the fleet; None where no other can come, as in memory.
        epoch: Of this session; None begins one.
        score: Scores an adapter on held-out data, in a thread; None scores nothing.
        calibrator: The calibration set, where the strategy asks for it; asked in a thread.
        strategy: Instead of the one that `config` names, which still says the space and what devices do.
        show: Gets an event for everything that happens.
        clock: Unix time in seconds.

    Raises:
        BaseModelError, UnsupportedAdapter: The base model does not fit the configuration.
        StateError: The state folder does not.
        ConfigError: The strategy asks for a calibration set, and has none that it can judge by.
        DiskFull: There is no room for version 0.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        state: CoordinatorState,
        transport: Transport,
        *,
        place: Place | None = None,
        epoch: int | None = None,
        score: Score | None = None,
        calibrator: Calibrator | None = None,
        strategy: Strategy | None = None,
        show: Show,
        clock: Callable[[], float] = time.time,
    ) -> None:
        config, beginning = settle(config, state.journal)
        self._config = config
        self._state = state
        self._transport = transport
        self._place = place
        self._epoch = state.begin_session(clock()) if epoch is None else epoch
        self._known = state.journal.last_seq()
        self._score = score
        self._tell = teller(show)
        self._clock = clock
        self._topics = Topics(config.fleet)
        self._merger = Merger(config, state, clock, calibrator, strategy)
        self._data_version = state.journal.data_version()
        self._version = found_fleet(config, state, clock(), beginning)
        if beginning is not None:
            self._tell_beginning(beginning)
        loss = check_calibration(config, calibrator, state.versions.load(self._version.master))
        if loss is not None:
            number = self._version.version
            self._tell(
                "calibrated", f"version {number}: calibration loss {loss:.4f}", version=number, loss=loss
            )
        self._roster = Roster(state.journal, config.devices, config.enrolment == "open")
        self._arrivals = Arrivals(self._roster, self._tell)
        self._publisher = Publisher(transport, self._topics, state.versions, config.chunk_bytes)
        self._rules = Rules(
            fleet=config.fleet,
            base=state.journal.meta("base") or "",
            max_staleness=0 if config.stages_in_force.trigger == "round" else config.max_staleness,
            max_update_bytes=config.max_update_bytes,
            max_norm=config.max_norm,
        )
        uploads = Uploads(state.incoming, state.updates, config.max_open_uploads)
        self._pace = PaceTeller(state.journal)
        self._holding = Holding(
            state.journal, self._roster, uploads, self._rules.max_staleness, config.hold_s
        )
        self._served: dict[str, int] = {}  # sha256 of what devices download, to the newest version of it
        desk = Desk(
            transport=transport,
            topics=self._topics,
            key=state.key,
            journal=state.journal,
            roster=self._roster,
            uploads=uploads,
            rules=self._rules,
            clock=clock,
            tell=self._tell,
        )
        self._intake = Intake(desk, self._present())
        self._unscored: asyncio.Queue[tuple[Version, Score]] = asyncio.Queue()
        self._stopping = asyncio.Event()
        self._announced_at = 0.0
        self._said: dict[str, float] = {}

    def _tell_beginning(self, beginning: Beginning) -> None:
        origin = beginning.origin
        text = f"version 0 is the adapter {describe(origin)}: {coverage_line(beginning.adapter)}"
        facts = {"format": origin.format, "name": origin.name, "sha256": origin.sha256}
        self._tell("began", text, **facts, num_modules=len(beginning.adapter))

    async def run(self) -> None:
        """Works until `max_versions` are made, or until `stop`.

        Raises:
            TransportError: The first connection was refused.
            PlaceTaken: Another coordinator has taken this one's place.
        """
        for update in self._state.recover():
            text = f"update {update[:8]} left the buffer: its payload on this disk is damaged"
            self._tell("discarded", text, updates=[update], reason="hash-mismatch")
        await _until_first(self._work(), self._stopping.wait())
        self._close()
        told = "stopped; state is on disk, the same command goes on from here"
        self._tell("stopped", told, version=self._version.version)

    def stop(self) -> None:
        """Ends `run` in order."""
        self._stopping.set()

    async def _work(self) -> None:
        """Connects, and serves until the last version is made."""
        async with self._transport:
            key = public_key(self._state.key)
            fleet, version, strategy = (
                self._config.fleet,
                self._version.version,
                self._merger.strategy,
            )
            self._tell(
                "serving",
                f"fleet {fleet} at version {version}, merged by {strategy}; coordinator key {key}",
                fleet=fleet,
                version=version,
                strategy=strategy,
                key=key,
            )
            await self._intake.recover()
            # Messages are taken from the first subscription on: amqtt answers the next one only when what is
            # retained under this one was acknowledged, or after 5 s.
            await _until_first(self._listen(), self._lead())

    async def _lead(self) -> None:
        for kind in ("hello", "state", "want", "telemetry", "up/+/+"):
            await self._transport.subscribe(self._topics.device("+", kind))
        for topic in (self._topics.coordinator, self._topics.challenge) if self._place else ():
            await self._transport.subscribe(topic)
        await self._announce()  # last: whoever sees a version asks for it at once
        await _until_first(
            self._publisher.run(),
            self._merge_when_ready(),
            self._score_versions(),
            *([self._place.keep(self._transport.publish)] if self._place else []),
        )

    # Messages of devices.

    async def _listen(self) -> None:
        async for message in self._transport.messages():
            try:
                await self._receive(message)
            except ProtocolError as error:
                self._complain(f"{message.topic.removeprefix(self._topics.root)[:200]}: {error}"[:500])
            except (DiskFull, OSError) as error:
                self._complain(f"{error}; nothing is receipted until this is mended")

    async def _receive(self, message: Message) -> None:
        at, payload = self._clock(), message.payload
        match self._topics.parse(message.topic):
            case HeaderTopic() as topic:
                await self._intake.take_header(topic.device_id, topic.update, payload)
            case ChunkTopic() as topic:
                await self._intake.take_chunk(topic.device_id, topic.update, topic.number, payload)
            case WantTopic() as topic:
                await self._serve(topic.device_id, decode_message(payload, Want), at)
            case HelloTopic() as topic if payload:
                self._arrivals.greet(topic.device_id, message, at)
            case StateTopic() as topic if payload:
                self._arrivals.observe(topic.device_id, message, at)
            case TelemetryTopic() as topic:
                telemetry = decode_message(payload, Telemetry)
                self._roster.follow(topic.device_id, telemetry, at)
                is_astray = telemetry.base_version > self._version.version
                self._roster.stray(topic.device_id, at if is_astray else None)
            case ChallengeTopic() if self._place:
                answer = self._place.answer(payload, self._version.version)
                await self._transport.publish(self._topics.answer, answer)
            case CoordinatorTopic() if self._place and payload:
                self._place.hear(payload)

    async def _serve(self, device_id: str, want: Want, at: float) -> None:
        """Has the wanted chunks published; where there are none, the device is told what there is instead."""
        if self._publisher.ask(want):
            self._roster.stray(device_id, None)
            if want.sha256 in self._served:
                self._roster.hold(device_id, self._served[want.sha256], at)
            return
        self._roster.stray(device_id, at)
        if at - self._announced_at >= ANNOUNCE_AGAIN_S:
            self._complain(
                f"{device_id} asks for {want.sha256[:16]}…, which is not here; "
                f"version {self._version.version} is announced again"
            )
            await self._announce()

    def _complain(self, fault: str) -> None:
        """Says a fault, the same one at most once a minute: strangers must not fill a log."""
        now = self._clock()
        if len(self._said) >= MAX_FAULTS:
            self._said.clear()
        if now - self._said.get(fault, 0.0) >= SAY_EVERY_S:
            self._said[fault] = now
            self._tell("warning", fault)

    # Versions.

    async def _announce(self) -> None:
        """Publishes the current version's manifest for every rank tier, retained."""
        version, config = self._version, self._config
        for rank in config.ranks:
            sha256 = version.tiers[tier_name(rank)]
            manifest = Manifest(
                fleet=config.fleet,
                tier=tier_name(rank),
                version=version.version,
                parent=version.parent,
                sha256=sha256,
                size_bytes=self._state.versions.path(sha256).stat().st_size,
                chunk_bytes=config.chunk_bytes,
                encoding=config.encoding,
                base=self._rules.base,
                rank=rank,
                space=config.stages_in_force.space,
                recipe=config.recipe_in_force(rank),
                sketch=self._sketch(),
                epoch=self._epoch,
                known=self._known,
            )
            topic = self._topics.version(manifest.tier)
            await self._transport.publish(topic, sign_message(manifest, self._state.key), retain=True)
        self._announced_at = self._clock()

    def _sketch(self) -> Blob | None:
        sha256 = self._state.versions.sketch
        if sha256 is None:
            return None
        return Blob(sha256=sha256, size_bytes=self._state.versions.path(sha256).stat().st_size)

    def _present(self) -> Present:
        versions, current = self._state.versions, self._version
        kept = versions.kept()
        self._served = {sha256: one.version for one in kept for sha256 in one.tiers.values()}
        tiers = {
            tier_name(rank): leading_rows(
                versions.load(current.tiers[tier_name(rank)]), self._config.recipe_in_force(rank).train_rank
            )
            for rank in self._config.ranks
        }
        blobs = {one.version: one.tiers for one in kept}
        return Present(current.version, versions.lineage(current.version), blobs, tiers)

    async def _adopt(self, version: Version) -> None:
        self._version = version
        self._intake.present = self._present()
        await self._announce()
        if version.loss is None and version.version % self._config.eval_every == 0:
            self._await_score(version)

    async def _merge_when_ready(self) -> None:
        if self._version.loss is None:
            self._await_score(self._version)
        if self._state.journal.waiting() and self._config.buffer_size is None:
            await asyncio.sleep(SETTLE_S)
        while not self._is_done():
            try:
                await self._notice_rollback()
                self._roster.flush()
                if self._clock() - self._announced_at >= ANNOUNCE_EVERY_S:
                    await self._announce()
                if buffer := self._ready():
                    await self._make_version(buffer)
                elif renewed := self._merger.renew(self._version):
                    await self._take(renewed)
                else:
                    await asyncio.sleep(POLL_S)
            except (BackendError, DiskFull, OSError) as error:
                self._complain(str(error))
                await asyncio.sleep(RETRY_S)
        await self._unscored.join()

    def _ready(self) -> list[Update]:
        """What to merge now; says how far the next version is where that has changed."""
        able = self._roster.able(min(self._config.ranks))
        buffer, pace = self._merger.ready(self._intake.present, able)
        if not buffer:
            now = self._clock()
            if told := self._pace.note(pace, len(self._roster.online()), len(able), now):
                facts = structs.asdict(told)
                del facts["noted_at"]
                self._tell("waiting", describe_pace(told, now), **facts)
        return buffer

    def _is_done(self) -> bool:
        return 0 < self._config.max_versions <= self._version.version

    async def _make_version(self, buffer: list[Update]) -> None:
        present = self._intake.present
        try:
            made = await self._merger.make(
                self._version, buffer, present, lambda: self._holding.versions(present, self._clock())
            )
        except MergeError as error:
            gone = self._merger.discard(buffer, error)
            names = ", ".join(f"{one.id[:8]} of {one.device}" for one in gone)
            text = f"updates {names} left the buffer, they cannot be merged: {error}"
            self._tell("discarded", text, updates=[one.id for one in gone], reason="unmergeable")
            return
        if made is not None:
            await self._take(made)

    async def _take(self, made: Version) -> None:
        if made.report is not None:
            tell_merge(self._tell, made.version, made.report)
        await self._adopt(made)

    async def _notice_rollback(self) -> None:
        data_version = self._state.journal.data_version()
        if data_version == self._data_version:
            return
        self._data_version = data_version
        current = self._state.versions.current()
        if current and current.version != self._version.version:
            text = f"version {current.version}: went back to version {current.parent}"
            self._tell("rollback", text, version=current.version, parent=current.parent)
            await self._adopt(current)

    def _await_score(self, version: Version) -> None:
        if self._score:
            self._unscored.put_nowait((version, self._score))

    async def _score_versions(self) -> None:
        while True:
            version, score = await self._unscored.get()
            try:
                adapter = self._state.versions.whole(self._state.versions.version(version.version))
                quality = await asyncio.to_thread(score, adapter)
                self._state.versions.score(version.version, *quality)
                text = f"version {version.version}: loss {quality.loss:.4f}, exact {quality.exact:.1%}"
                self._tell("scored", text, version=version.version, **quality._asdict())
            except TunefleetError as error:  # a fleet goes on learning while nobody can tell how well
                self._complain(f"version {version.version} is not scored: {error}")
            self._unscored.task_done()

    def _close(self) -> None:
        try:
            self._roster.flush()
            self._pace.close()
        except DiskFull as error:
            self._complain(str(error))


async def _until_first(*loops: Coroutine[Any, Any, object]) -> None:
    """Runs all until one ends, or raises; then ends the others."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
