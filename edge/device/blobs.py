"""Files of the coordinator's that come in chunks: a version's adapter, the sample of the base model."""

import asyncio
from pathlib import Path
from typing import Any

from edge.delivery.download import Download
from edge.device.session import Session
from edge.errors import Rejected
from edge.storage.parts import PartFile


class Blobs:
    """The fetching side of one client; one file at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def fetch(self, part: PartFile, final: Path, what: str, **facts: Any) -> bool:
        """Whether the file is at `final` now; False when it stopped coming, or came damaged.

        Args:
            part: Where it grows.
            final: Where it lies when it is whole.
            what: It, in words.
            facts: It, in every event that tells how far it is.

        Raises:
            DiskFull: A chunk found no room.
        """
        session = self._session
        want_topic = session.topics.device(session.config.device_id, "want")
        download = Download(session.transport, part, want_topic, session.config.patience_s)
        total = download.num_chunks

        def tell(done: int) -> None:
            session.say("downloading", f"{what}, {done} of {total} chunks", **facts, done=done, total=total)

        session.inbox.download = download
        try:
            is_here = await download.run(session.topics, tell)
            if is_here:
                await asyncio.to_thread(part.finish, final)
            return is_here
        except Rejected as error:
            session.say("warning", f"{what} came damaged, fetching it again: {error}")
            return False
        finally:
            session.inbox.download = None
