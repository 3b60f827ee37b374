"""The coordinator: announces versions, takes updates in, and makes the next version when it is time.

Everything runs in one event loop around a `Transport`; what takes long (checking a payload, merging,
scoring) runs in a thread beside it. The journal is the truth: a coordinator that is killed at any point goes
on where it was, and what was accepted is still in the buffer. What happens is told to observers.

This file builds the parts and runs them: `routing` brings messages to whom they concern, `merging.loop` makes
versions, `announcing` and `publisher` send them out, `scoring` says how good they are.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from coordinator.access.device_list import DeviceList
from coordinator.announcing import Announcer
from coordinator.config import CoordinatorConfig
from coordinator.events.records import AdapterGiven, Calibrated, Serving, Stopped, UpdatesDiscarded
from coordinator.events.telling import Complaints, Observer, teller
from coordinator.first_version import make_first_version
from coordinator.initial_adapter import GivenAdapter, coverage_line, describe, settle
from coordinator.intake.admission import Rules
from coordinator.intake.admitting import Admitting
from coordinator.intake.allowance import Allowance
from coordinator.intake.arrivals import Arrivals
from coordinator.intake.attempts import Attempts, Making
from coordinator.intake.doorkeeper import Doorkeeper
from coordinator.intake.gate import Gate
from coordinator.intake.norms import open_norms
from coordinator.intake.notices import Notices
from coordinator.intake.open_uploads import Uploads
from coordinator.intake.roster import Roster
from coordinator.intake.updates import Desk, Intake
from coordinator.ledger.head import Head
from coordinator.ledger.retention import Retention
from coordinator.ledger.state import CoordinatorState
from coordinator.merging.loop import Hands, MergeLoop, Waits
from coordinator.merging.merger import Merger, check_calibration
from coordinator.older_wire import OlderWire
from coordinator.routing import Offices, Router
from coordinator.scoring import Score, Scorer
from coordinator.strategies.contract import Calibrator, Strategy
from edge.delivery.place import Place
from edge.delivery.publisher import Publisher
from edge.delivery.trees import Trees
from edge.errors import DiskRefused
from edge.protocol.signing import Signer
from edge.protocol.tiers import tier_name
from edge.protocol.topics import Topics
from edge.transport.base import Transport


class Coordinator:
    """One fleet's coordinator; `run` once.

    Args:
        config: Its settings.
        state: Its state folder, entered.
        transport: Not entered yet; with `announcing.coordinator_presence`.
        place: Its claim to the fleet; None where no other can come, as in memory.
        signer: Of this session; None begins one.
        score: Scores an adapter on held-out data, in a thread; None scores nothing.
        calibrator: The calibration set, where the strategy asks for it; asked in a thread.
        strategy: Instead of the one that `config` names, which still says the space and what devices do.
        observers: Are told everything that happens.
        clock: Unix time in seconds, for what is written down; it may be set.
        timer: Seconds of any beginning, never set back, for every interval.
        waits: How long it waits where it must.

    Raises:
        BaseModelError, UnsupportedAdapter: The base model does not fit the configuration.
        StateError: The state folder does not.
        ConfigError: The strategy asks for a calibration set, and has none that it can judge by.
        DiskRefused: There is no room for version 0.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        state: CoordinatorState,
        transport: Transport,
        *,
        place: Place | None = None,
        signer: Signer | None = None,
        score: Score | None = None,
        calibrator: Calibrator | None = None,
        strategy: Strategy | None = None,
        observers: Sequence[Observer],
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        waits: Waits = Waits(),  # noqa: B008 - it is frozen
    ) -> None:
        config, given = settle(config, state.journal)
        self._signer = signer = signer or state.begin_session(clock())
        self._config, self._state, self._transport, self._place = config, state, transport, place
        self._tell = teller(observers)
        self._complain = Complaints(self._tell, timer)
        self._merger = Merger(config, state, clock, calibrator, strategy, timer)
        self._head = self._first_head(given, calibrator, clock())
        versions, topics, base = state.versions, Topics(config.fleet), state.journal.meta("base") or ""
        trees = Trees(versions.objects, config.chunk_bytes)
        announcer = Announcer(config, state, trees, self._head, signer, transport, timer)
        rules = _rules(config, base, state.key)
        journal, limits = state.journal, config.limits
        listed = DeviceList(config.devices, Path(config.devices_file) if config.devices_file else None)
        self._roster = Roster(
            journal, listed, config.enrolment == "open", clock, timer, limits=limits,
            delivered=journal.delivered(),
        )  # fmt: skip
        uploads = Uploads(state.incoming, state.updates, config.max_open_uploads, limits, self._roster, timer)
        allowance = Allowance(
            limits, journal, timer, buffer_size=config.buffer_size, chunk_bytes=config.chunk_bytes,
            largest_bytes=announcer.largest_bytes,
        )  # fmt: skip
        desk = Desk(
            transport=transport, topics=topics, signer=signer, journal=journal, roster=self._roster,
            uploads=uploads, rules=rules, allowance=allowance,
            attempts=Attempts(journal, Making(config.recipe, limits.max_steps_per_s)),
            norms=open_norms(
                journal, config.recipe_in_force(config.ranks[0]), limits.max_norm_ratio, config.privacy
            ),
            head=self._head, clock=clock, tell=self._tell, complain=self._complain, timer=timer,
        )  # fmt: skip
        self._intake = Intake(desk)
        self._notices = Notices(transport, topics, signer, timer)
        admitting = Admitting(config.fleet, signer.key, self._roster, self._notices, self._tell, clock, timer)
        self._doorkeeper = Doorkeeper(
            journal=state.journal, roster=self._roster, bar=(self._intake.drop, admitting.bar),
            publish=transport.publish, topics=topics, list_state=listed.state, tell=self._tell,
            complain=self._complain, timer=timer, poll_s=waits.poll_s,
        )  # fmt: skip
        self._announcer = announcer
        self._publisher = Publisher(
            transport, topics, versions.objects, trees, config.chunk_bytes, complain=self._complain
        )
        self._scorer = Scorer(score, versions, config.eval_every, self._tell, self._complain)
        offices = Offices(
            intake=self._intake, admitting=admitting, arrivals=Arrivals(self._roster, self._tell),
            roster=self._roster, allowance=allowance, publisher=self._publisher, announcer=announcer,
            gate=Gate(self._roster, allowance), head=self._head, place=place,
            older_wire=OlderWire(transport, config.fleet, config.ranks, self._complain),
        )  # fmt: skip
        self._router = Router(transport, topics, offices, self._complain, clock)
        held, receiving = self._roster.held, uploads.base_versions
        retention = Retention(state.journal, held, receiving, rules.max_staleness, config.hold_s)
        hands = Hands(
            config=config, state=state, head=self._head, merger=self._merger, roster=self._roster,
            retention=retention, announcer=announcer, scorer=self._scorer, clock=clock, timer=timer,
            tell=self._tell, complain=self._complain,
        )  # fmt: skip
        self._merging = MergeLoop(hands, waits)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Works until `max_versions` are made, or until `stop`.

        Raises:
            TransportError: The first connection was refused.
            PlaceTaken: Another coordinator has taken this one's place.
        """
        for update in self._state.recover():
            told = f"update {update[:8]} left the buffer: its payload on this disk is damaged"
            self._tell(UpdatesDiscarded((update,), "hash-mismatch", told))
        self._state.journal.hurry()
        await _until_first(self._work(), self._stopping.wait())
        for end in (self._roster.flush, lambda: self._tell(Stopped(self._head.version.version))):
            try:
                end()
            except DiskRefused as error:
                self._complain(str(error))

    def stop(self) -> None:
        """Ends `run` in order."""
        self._stopping.set()

    async def _work(self) -> None:
        """Connects, and serves until the last version is made."""
        async with self._transport:
            key, version = self._signer.key, self._head.version.version
            self._tell(Serving(self._config.fleet, version, self._merger.strategy, key))
            self._intake.recover()
            # Messages are taken from the first subscription on: amqtt answers the next one only when what is
            # retained under this one was acknowledged, or after 5 s.
            await _until_first(self._router.run(), self._lead(), *self._intake.loops())

    async def _lead(self) -> None:
        await self._router.subscribe()
        await self._announcer.announce()  # last: whoever sees a version asks for it at once
        await _until_first(
            self._publisher.run(),
            self._merging.run(),
            self._scorer.run(),
            self._doorkeeper.run(),
            self._notices.run(),
            *(
                self._place.loops(self._transport.publish, lambda: self._head.version.version)
                if self._place
                else ()
            ),
        )

    def _first_head(self, given: GivenAdapter | None, calibrator: Calibrator | None, at: float) -> Head:
        """Returns the current version, made where there is none, and tells what it is."""
        config, versions = self._config, self._state.versions
        version = make_first_version(config, self._state, at, given)
        if given is not None:
            origin, coverage = given.origin, coverage_line(given.adapter)
            num_modules = len(given.adapter)
            self._tell(
                AdapterGiven(
                    origin.format, origin.name, origin.sha256, num_modules, describe(origin), coverage
                )
            )
        loss = check_calibration(config, calibrator, versions.load(version.master))
        if loss is not None:
            self._tell(Calibrated(version.version, loss))
        ranks = {tier_name(rank): config.recipe_in_force(rank).train_rank for rank in config.ranks}
        return Head(versions, version, ranks)


def _rules(config: CoordinatorConfig, base: str, identity: bytes) -> Rules:
    return Rules(
        fleet=config.fleet,
        base=base,
        max_staleness=0 if config.method_in_force.trigger == "round" else config.max_staleness,
        max_update_bytes=config.max_update_bytes,
        max_norm=config.max_norm,
        deviation=config.privacy.deviation,
        identity=identity,
    )


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
