"""The entry of one client: what it says of its key, and what the coordinator says of it.

A claim to a token, and the word of an old key, are said until the coordinator has answered. Who is not known
is not answered (`edge.delivery.silence` tells its owner what to do).
"""

import asyncio
from collections.abc import Awaitable, Callable

from edge.device.session import Session
from edge.errors import DiskRefused, Rejected
from edge.protocol.enrolment import AccessNotice, Enrol
from edge.protocol.messages import Presence
from edge.storage.enrolment import drop_enrolment, read_enrolment
from edge.storage.identity import read_rotations

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 60.0


class Enroller:
    """The entering loop of one client.

    Args:
        session: The running client's.
        greet: Has the capability card sent again.
        sleep: Waits between two attempts.
    """

    def __init__(
        self,
        session: Session,
        greet: Callable[[], None],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._session = session
        self._greet = greet
        self._sleep = sleep
        self._answered = asyncio.Event()
        self._notices: asyncio.Queue[AccessNotice] = asyncio.Queue()

    def take(self, notice: AccessNotice) -> None:
        """Takes what the coordinator says of a key; of another key than this device's it means nothing."""
        if notice.key == self._session.state.signer.key:
            self._notices.put_nowait(notice)

    async def run(self) -> None:
        """Enters, and listens for ever for what is said of this device.

        Raises:
            Rejected: `banned`.
        """
        session = self._session
        await session.transport.subscribe(session.topics.device(session.config.device_id, "access"))
        loops = [asyncio.create_task(loop) for loop in (self._say(), self._listen())]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_EXCEPTION)
            for loop in done:
                loop.result()
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def _say(self) -> None:
        """Says why this device may speak, until it was heard."""
        state = self._session.state
        waiting = read_enrolment(state.folder)
        word = Enrol(
            claim=waiting.claim if waiting else None,
            rotations=read_rotations(state.folder, "restore it, or join as a new device"),
        )
        if word == Enrol():
            return
        pause_s = FIRST_PAUSE_S
        while not self._answered.is_set():
            await self._session.publish("enrol", word)
            await self._sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _listen(self) -> None:
        session = self._session
        config = session.config
        while True:
            notice = await self._notices.get()
            if notice.standing == "banned":
                spooled = len(session.spool.entries())
                kept = f"; its {spooled} updates stay in {config.state}" if spooled else ""
                told = f"{config.device_id} was banned from fleet {config.fleet} by its owner{kept}"
                raise Rejected("banned", told)
            self._answered.set()
            if notice.news:
                await self._enter(notice.news)

    async def _enter(self, news: str) -> None:
        """Begins anew what the coordinator did not hear before it knew this device."""
        session = self._session
        session.say("enrolled", f"{session.config.device_id} is {news}", key=session.state.signer.key)
        try:
            drop_enrolment(session.state.folder)
        except DiskRefused as error:  # it is said once more at the next start
            session.warn(str(error))
        await session.publish("state", Presence(online=True), retain=True)
        self._greet()
