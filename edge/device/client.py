"""The program on a device: waits for a version, trains on it, and delivers what it learnt.

Two loops share one connection: `learning/` does one task after another and spools what was learnt,
`courier.py` brings the spool to the coordinator; so training goes on while an update travels. Everything
that matters is on the disk before the next step builds on it: a client that is killed anywhere goes on where
it was.
"""

import asyncio
import time

from edge.complaints import Complaints
from edge.delivery.download import Downloader
from edge.delivery.place import Place
from edge.delivery.silence import Silence
from edge.delivery.upload import Uploader
from edge.device.budget import Budget
from edge.device.config import DeviceConfig
from edge.device.courier import Courier
from edge.device.enroller import Enroller
from edge.device.inbox import Inbox
from edge.device.learning.learner import Learner
from edge.device.session import Session
from edge.device.state import DeviceState
from edge.device.wakeups import Wakeups
from edge.events import Event, Show
from edge.protocol.topics import Topics
from edge.storage.spool import Spool
from edge.training.worker.supervisor import Trainer
from edge.transport.base import Transport


class Client:
    """One device in one fleet; `run` once.

    Args:
        config: Its settings.
        backend: Name of the backend, as its capability card shows it.
        state: Its state folder, entered.
        transport: Not entered yet; with the device's presence.
        worker: Not entered yet.
        show: Gets every event.
        spool: Its updates without a receipt; by default those in the state folder.
        place: Its claim to its name; None where no copy of it can come, as in memory.
    """

    def __init__(
        self,
        config: DeviceConfig,
        *,
        backend: str,
        state: DeviceState,
        transport: Transport,
        worker: Trainer,
        show: Show,
        spool: Spool | None = None,
        place: Place | None = None,
    ) -> None:
        wakeups, topics, memory = Wakeups(), Topics(config.fleet), state.memory
        self._complain = Complaints(lambda text: show(Event("warning", text, {})), time.monotonic)
        silence = Silence(lambda: show(Event("warning", _unanswered(config, state.signer.key), {})))
        downloader = Downloader(transport, topics, config.device_id, state.signer, config.patience_s, silence)
        uploader = Uploader(transport, topics, state.signer, config.patience_s, silence)
        inbox = Inbox(
            config.fleet,
            config.device_id,
            memory.coordinator_key,
            wakeups=wakeups,
            on_chunk=downloader.receive,
            on_receipt=uploader.receive,
            on_access=lambda notice: self._enroller.take(notice),
            on_own=place.hear if place else lambda message: None,
            warn=self._complain,
            # A coordinator that tells no epoch may be followed back to any version, as ever.
            seen=(memory.epoch, memory.newest if memory.epoch else -1),
            heard=memory.heard,
        )
        self._session = Session(
            config=config,
            backend=backend,
            state=state,
            budget=Budget(state.folder, config.privacy),
            spool=spool or Spool(state.spool, state.residual),
            inbox=inbox,
            transport=transport,
            downloader=downloader,
            uploader=uploader,
            wakeups=wakeups,
            show=show,
            complain=self._complain,
        )
        self._worker = worker
        self._place = place
        self._courier = Courier(self._session)
        self._enroller = Enroller(self._session, self._courier.greet_again)
        self._learner = Learner(self._session, worker)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Works until `max_tasks` are receipted, or until `stop`.

        Raises:
            TransportError: The first connection was refused.
            BaseModelError: The fleet trains another base model.
            DataError, BackendError, ConfigError: Training is not possible.
            Rejected: The coordinator does not want this device.
        """
        work = asyncio.create_task(self._work())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and await self._learner.stop():
                await asyncio.wait({work})
        finally:
            await _end(work, stopping)
        if not work.cancelled():
            work.result()
        self._session.say("stopped", "all is on disk; the same command goes on from here")

    def stop(self) -> None:
        """Ends `run` in order: a task under way writes a checkpoint."""
        self._stopping.set()

    async def _work(self) -> None:
        config = self._session.config
        async with self._session.transport, self._worker:
            self._session.say("joined", f"fleet {config.fleet} as {config.device_id}")
            loops_of = self._learner, self._courier, self._enroller
            runs = (self._learner.follow, self._learner.keep, self._listen, *(one.run for one in loops_of))
            loops = [asyncio.create_task(run()) for run in runs]
            try:
                if self._place is not None:
                    transport = self._session.transport
                    await self._place.subscribe(transport)
                    loops += [asyncio.create_task(loop) for loop in self._place.loops(transport.publish)]
                done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
                for loop in done:
                    loop.result()
            finally:
                await _end(*loops)

    async def _listen(self) -> None:
        async for message in self._session.transport.messages():
            try:
                self._session.inbox.receive(message)
            except Exception as error:  # nothing that is received ends a client
                self._complain.unforeseen(message.topic[:200], error)


async def _end(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _unanswered(config: DeviceConfig, key: str) -> str:
    return (
        f"the coordinator of fleet {config.fleet} has answered nothing for a minute; if it is there, it has "
        f"not let this device in: its owner types `tunefleet device allow {config.device_id} {key}`"
    )
