"""The coordinator's files on this device's disk: a version's adapter, the sample of the base model."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.device.session import Session
from edge.errors import Rejected
from edge.protocol.messages import Blob
from edge.storage.parts import PartFile


class Blobs:
    """The fetching side of one client; one file at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def fetch(
        self,
        blob: Blob,
        chunk_bytes: int,
        final: Path,
        what: str,
        is_obsolete: Callable[[], bool],
        **facts: Any,
    ) -> Path | None:
        """Fetches a file, again where it came damaged or stopped coming.

        Args:
            blob: The file.
            chunk_bytes: Of its chunks.
            final: Where it lies when it is whole; it grows beside that, as `.part`.
            what: It, in words.
            is_obsolete: Asked when it stopped coming: whether it is of no use any more.
            facts: It, in every event that tells how far it is.

        Returns:
            `final`; None where it has become obsolete.

        Raises:
            DiskRefused: A chunk found no room.
        """
        part = PartFile(final.with_suffix(".part"), blob.size_bytes, chunk_bytes, blob.sha256, blob.root)
        total = part.received.total

        def tell(done: int) -> None:
            text = f"{what}, {done} of {total} chunks"
            self._session.say("downloading", text, **facts, done=done, total=total)

        while True:
            try:
                if await self._session.downloader.fetch(part, tell) and await asyncio.to_thread(
                    part.finish, final
                ):
                    return final
            except Rejected as error:
                self._session.say("warning", f"{what} came damaged, fetching it again: {error}")
            if is_obsolete():
                part.discard()
                return None
