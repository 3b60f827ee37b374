"""A coordinator and its devices in one event loop, over a transport in memory; `fleet.py` drives it.

They are the real ones: what is encoded, signed, sent in chunks, checked, journalled and merged here is so in
a fleet on MQTT too. Only training differs: devices take turns at one model (`edge.training.worker.shared`).
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from converters.adapter import LoraAdapter
from coordinator.announcing import coordinator_presence
from coordinator.config import CoordinatorConfig
from coordinator.errors import CoordinatorError
from coordinator.ledger.state import CoordinatorState
from coordinator.observers.history import VersionStatus, version_status
from coordinator.observers.status import StatusNotes
from coordinator.observers.terminal import Terminal
from coordinator.serve import open_data
from coordinator.server import Coordinator
from coordinator.strategies.contract import Strategy
from edge.backends import BackendName, resolve_backend
from edge.backends.contract import Precision
from edge.device.capability_card import device_presence
from edge.device.client import Client
from edge.device.config import DeviceConfig, read_config
from edge.device.state import DeviceState, fresh_memory
from edge.training.requests import Evaluation, Scoring
from edge.training.worker.shared import SharedModel, SharedWorker
from edge.transport.memory import MemoryBroker, MemoryTransport

ENDING_S = 30.0  # for the step that is under way
ModelKey = tuple[str, BackendName, Precision]


class Member(NamedTuple):
    """One running device."""

    client: Client
    state: DeviceState
    task: asyncio.Task[None]


class Gathering:
    """The coordinator of one fleet, and the devices that have joined; used as `async with`.

    Args:
        config: The coordinator's settings.
        strategy: Instead of the one that `config` names.
        say: Gets one line for everything that happens.

    Raises:
        BaseModelError, StateError, DataError, ConfigError: On entering, as `tunefleet serve`.
    """

    def __init__(
        self, config: CoordinatorConfig, strategy: Strategy | None, say: Callable[[str], None]
    ) -> None:
        self._config, self._strategy, self._say = config, strategy, say
        self._broker = MemoryBroker()
        self._models: dict[ModelKey, SharedModel] = {}
        self._members: dict[str, Member] = {}
        self._state = CoordinatorState(Path(config.state), config.fleet)

    async def __aenter__(self) -> Self:
        config = self._config
        score, calibrator = open_data(config)
        self._state.__enter__()
        try:
            signer = self._state.begin_session(time.time())
            presence = coordinator_presence(config.fleet, signer)
            self._coordinator = Coordinator(
                config,
                self._state,
                MemoryTransport(self._broker, "coordinator", presence),
                signer=signer,
                score=score.score if score else None,
                calibrator=calibrator,
                strategy=self._strategy,
                observers=(Terminal(lambda event: self._say(event.text)), StatusNotes(self._state.journal)),
            )
        except BaseException:
            self._state.__exit__(None, None, None)
            raise
        self._serving = asyncio.create_task(self._coordinator.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(self.leave(name) for name in self.devices))
        self._coordinator.stop()
        await asyncio.gather(self._serving, return_exceptions=True)
        self._state.__exit__(None, None, None)
        for model in self._models.values():
            model.close()

    @property
    def devices(self) -> list[str]:
        """Names of those that have joined, and not left."""
        return list(self._members)

    async def join(self, settings: Mapping[str, Any]) -> None:
        """Lets a device join, of a device's settings.

        Raises:
            ConfigError, BaseModelError, StateError, MissingExtra: As `tunefleet join`.
        """
        config = read_config(None, settings)
        backend = resolve_backend(config.backend, Path(config.base)).name
        state = DeviceState(Path(config.state), fresh_memory(config)).__enter__()
        client = self._client(config, backend, state)
        self._members[config.device_id] = Member(client, state, asyncio.create_task(client.run()))

    async def leave(self, name: str) -> None:
        """Lets a device go, once its step under way is done."""
        member = self._members.pop(name)
        member.client.stop()
        await asyncio.wait([member.task], timeout=ENDING_S)
        member.task.cancel()
        await asyncio.gather(member.task, return_exceptions=True)
        member.state.__exit__(None, None, None)

    async def check(self, version: int) -> None:
        """Raises what keeps `version` from being made: what ended the coordinator or a device."""
        for task in (self._serving, *(member.task for member in self._members.values())):
            if task.done():
                task.result()
        current = await self.version()
        if self._serving.done() and current < version:
            raise CoordinatorError(
                f"the coordinator ended at version {current}, before version {version}: "
                f"max_versions is {self._config.max_versions}"
            )

    async def version(self) -> int:
        """Returns the current version's number."""
        current = self._state.versions.current()
        assert current is not None  # the coordinator has made version 0
        return current.version

    async def num_waiting(self) -> int:
        """Returns the number of updates in the buffer."""
        return len(self._state.journal.waiting())

    async def adapter(self, version: int | None) -> LoraAdapter:
        """Returns a version as an adapter, or the current one."""
        number = await self.version() if version is None else version
        return self._state.versions.whole(self._state.versions.version(number))

    async def history(self) -> list[VersionStatus]:
        """Returns all versions, oldest first."""
        return [version_status(one) for one in self._state.versions.history()]

    async def score(self, model: ModelKey, scoring: Scoring) -> Evaluation:
        """Scores data by a model that devices may be training with."""
        return await SharedWorker(self._model(model)).score(scoring)

    def _client(self, config: DeviceConfig, backend: str, state: DeviceState) -> Client:
        name = config.device_id
        presence = device_presence(config.fleet, name, state.signer)
        return Client(
            config,
            backend=backend,
            state=state,
            transport=MemoryTransport(self._broker, name, presence),
            worker=SharedWorker(self._model((config.base, config.backend, config.precision))),
            show=lambda event: self._say(f"{name} {event.kind}: {event.text}"),
        )

    def _model(self, key: ModelKey) -> SharedModel:
        if key not in self._models:
            self._models[key] = SharedModel(*key)
        return self._models[key]
