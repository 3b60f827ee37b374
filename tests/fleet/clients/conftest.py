"""A small fleet: the toy base, a real coordinator, real clients with their worker processes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from coordinator.announcing import coordinator_presence
from coordinator.config import read_config as read_coordinator_config
from coordinator.ledger.state import CoordinatorState
from coordinator.merging.loop import Waits
from coordinator.observers.status import StatusNotes
from coordinator.observers.terminal import Terminal
from coordinator.server import Coordinator
from coordinator.strategies.contract import Calibrator
from edge.backends.toy import make_toy_base
from edge.device.capability_card import device_presence
from edge.device.client import Client
from edge.device.config import DeviceConfig, read_config
from edge.device.state import DeviceState, fresh_memory
from edge.events import Event
from edge.storage.spool import Spool
from edge.training.worker.supervisor import Worker
from edge.transport.base import MakePresence, Transport
from edge.transport.memory import MemoryBroker, MemoryTransport

Connect = Callable[[MakePresence], Transport]


class Device:
    """A client and what it has told so far."""

    def __init__(self, client: Client, state: DeviceState, worker: Worker) -> None:
        self.client = client
        self.state = state
        self.worker = worker
        self.events: list[Event] = []
        self.told = asyncio.Event()

    def show(self, event: Event) -> None:
        self.events.append(event)
        self.told.set()

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    async def until(self, kind: str, count: int = 1) -> Event:
        """The `count`-th event of a kind."""
        async with asyncio.timeout(60):
            while len(self.of(kind)) < count:
                self.told.clear()
                await self.told.wait()
        return self.of(kind)[count - 1]

    async def until_told(self, text: str) -> None:
        """An event says just this."""
        async with asyncio.timeout(60):
            while text not in (event.text for event in self.events):
                self.told.clear()
                await self.told.wait()


class Home:
    """A fleet called `home` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = make_toy_base(folder / "base")
        self.data = folder / "data.jsonl"
        rows = [{"prompt": f"light {n} on", "completion": f" set({n}, 1)"} for n in range(8)]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.broker = MemoryBroker()
        self.said: list[str] = []

    def device_config(self, device_id: str = "lamp", **changes: Any) -> DeviceConfig:
        settings = {
            "broker": "mqtt://127.0.0.1",
            "fleet": "home",
            "base": str(self.base),
            "data": {"path": str(self.data)},
            "device_id": device_id,
            "state": str(self.folder / device_id),
            "patience_s": 0.5,
        }
        return read_config(None, settings | changes)

    @asynccontextmanager
    async def coordinator(
        self, connect: Connect | None = None, calibrator: Calibrator | None = None, **changes: Any
    ) -> AsyncIterator[Coordinator]:
        settings = {
            "broker": "mqtt://127.0.0.1",
            "fleet": "home",
            "base": str(self.base),
            "state": str(self.folder / "coordinator"),
            "ranks": (4,),
            "buffer_size": 1,
            "time_budget_s": 0.0,
            "chunk_bytes": 1024,
            "recipe": {"steps": 3, "seq_tokens": 64, "batch_tokens": 128},
        }
        config = read_coordinator_config(None, settings | changes)
        with CoordinatorState(Path(config.state), config.fleet) as state:
            signer = state.begin_session(time.time())
            connect = connect or (lambda presence: MemoryTransport(self.broker, "coordinator", presence))
            transport = connect(coordinator_presence("home", signer))
            coordinator = Coordinator(
                config,
                state,
                transport,
                signer=signer,
                calibrator=calibrator,
                waits=Waits(poll_s=0.02, settle_s=0.5),
                observers=(Terminal(lambda event: self.said.append(event.text)), StatusNotes(state.journal)),
            )
            task = asyncio.create_task(coordinator.run())
            try:
                yield coordinator
                coordinator.stop()
                async with asyncio.timeout(30):
                    await task
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    @asynccontextmanager
    async def device(
        self,
        device_id: str = "lamp",
        *,
        transport: Transport | None = None,
        spool: type[Spool] = Spool,
        **changes: Any,
    ) -> AsyncIterator[Device]:
        """A device that is not running yet: `await device.client.run()`."""
        config = self.device_config(device_id, **changes)
        with DeviceState(Path(config.state), fresh_memory(config)) as state:
            presence = device_presence(config.fleet, device_id, state.signer)
            device: Device | None = None

            def show(event: Event) -> None:
                assert device
                device.show(event)

            worker = Worker(config.base, config.backend, config.precision)
            client = Client(
                config,
                backend="toy",
                state=state,
                transport=transport or MemoryTransport(self.broker, device_id, presence),
                worker=worker,
                show=show,
                spool=spool(state.spool, state.residual),
            )
            device = Device(client, state, worker)
            yield device

    @asynccontextmanager
    async def running(self, device_id: str = "lamp", **changes: Any) -> AsyncIterator[Device]:
        """A device that runs, and is stopped at the end where it has not ended before."""
        async with self.device(device_id, **changes) as device:
            task = asyncio.create_task(device.client.run())
            try:
                yield device
                device.client.stop()
                async with asyncio.timeout(30):
                    await task
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)
