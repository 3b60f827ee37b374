"""Brings what lies in the spool to the coordinator, oldest first, until each update has its final receipt."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from edge.device.capability_card import capability_card
from edge.device.disk_wait import until_the_disk_takes
from edge.device.session import Session
from edge.errors import DiskRefused, MissingObject, Rejected
from edge.protocol.messages import Hello, Receipt
from edge.protocol.signing import NEVER
from edge.storage.spool import Entry

# Verdicts on the device: every further update would fare alike.
FATAL = frozenset({"unknown-device", "banned", "bad-signature", "foreign-base"})
# Verdicts on the sender's key alone: the update itself may still count, once the device is enrolled.
UNJOURNALLED = frozenset({"unknown-device", "banned", "bad-signature"})


class Courier:
    """The delivering loop of one client.

    Args:
        session: The running client's.
        sleep: Waits for a disk that says no.
    """

    def __init__(self, session: Session, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self._session = session
        self._sleep = sleep
        self._greeted: Hello | None = None

    async def run(self) -> None:
        """Delivers for ever.

        Raises:
            Rejected: The coordinator does not want this device.
        """
        session = self._session
        await session.transport.subscribe(session.topics.device(session.config.device_id, "receipt"))
        while True:
            await until_the_disk_takes(self._deliver, session.warn, self._sleep)

    def greet_again(self) -> None:
        """Has the capability card sent once more: the coordinator did not know this device before."""
        self._greeted = None
        self._session.wakeups.something_to_send.set()

    async def _deliver(self) -> None:
        """Delivers the oldest update, or waits for one."""
        session = self._session
        session.wakeups.something_to_send.clear()
        await self._greet()
        entry = self._next()
        if entry is None:
            await session.wakeups.something_to_send.wait()
            return
        try:
            self._settle(entry, await session.uploader.send(entry))
        except MissingObject as error:
            session.spool.drop(entry)
            session.warn(f"{error}; update {entry.header.update[:8]} is given up")
        session.wakeups.offers_changed.set()

    def _next(self) -> Entry | None:
        """Returns the oldest update whose task is closed: before that, a kill could start the task again."""
        task = self._session.state.memory.task
        entries = self._session.spool.entries()
        return next((entry for entry in entries if not (task and task.yielded(entry.header))), None)

    async def _greet(self) -> None:
        """Sends the capability card, once the base model is known; again, once the speed is."""
        config, memory = self._session.config, self._session.state.memory
        told = self._greeted
        is_told = told is not None and (told.tokens_per_s is not None or memory.tokens_per_s is None)
        if memory.base is None or is_told:
            return
        self._greeted = capability_card(
            config.device_id, self._session.backend, config.max_rank, memory.tokens_per_s, memory.base
        )
        if not await self._session.publish("hello", self._greeted, retain=True):
            self._greeted = None

    def _remember(self, receipt: Receipt) -> None:
        """Notes the verdict's place in the coordinator's journal, to see when it is forgotten there.

        A verdict of a session whose manifest is still to come is not noted: what the journal has forgotten is
        seen by what was noted before.
        """
        state, inbox = self._session.state, self._session.inbox
        epoch = inbox.heard.get("receipt", NEVER).epoch
        if receipt.seq and receipt.seq > state.memory.seq and epoch <= inbox.seen[0]:
            try:
                state.update(seq=receipt.seq, seq_epoch=epoch, heard=dict(inbox.heard))
            except DiskRefused as error:  # the next receipt's is noted
                self._session.warn(str(error))

    def _settle(self, entry: Entry, receipt: Receipt) -> None:
        name = f"update {entry.header.update[:8]} on version {entry.header.base_version}"
        facts = {"base_version": entry.header.base_version}
        facts |= {
            name: value
            for name, value in msgspec.structs.asdict(receipt).items()
            if name not in ("seq", "header")
        }
        if receipt.status == "accepted":
            self._session.spool.accept(entry)
            self._remember(receipt)
            self._session.say("accepted", name, **facts)
            return
        reason = receipt.reason or "malformed"
        if reason not in UNJOURNALLED:
            self._session.spool.drop(entry)
        self._session.say("rejected", f"{name}: {reason}: {receipt.detail}", **facts)
        if reason in FATAL:
            raise Rejected(reason, f"{name}: {receipt.detail or 'refused by the coordinator'}")
