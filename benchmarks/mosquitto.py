"""Mosquitto with its persistence on, on a free port of this machine."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from converters.errors import TunefleetError
from coordinator.demo.processes import Children

NAME = "mosquitto"
POLL_S = 0.05
SETTINGS = """
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
persistence true
persistence_location {folder}/
autosave_interval 5
user root
"""


class Mosquitto:
    """A broker as a child process that can be killed and started again.

    Args:
        children: Which it is one of.
        folder: Of its configuration and of what it keeps.
    """

    def __init__(self, children: Children, folder: Path) -> None:
        self._children, self._folder = children, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def url(self) -> str:
        """What clients are told."""
        return f"mqtt://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Starts it, and returns when it listens.

        Raises:
            ChildFailed: It ended.
        """
        config = self._folder / "mosquitto.conf"
        config.write_text(SETTINGS.format(port=self.port, folder=self._folder.resolve()))
        await self._children.start(NAME, ["-c", str(config)])
        while not self._listens():
            self._children.check(NAME)
            await asyncio.sleep(POLL_S)

    def _listens(self) -> bool:
        with socket.socket() as probe:  # another for each try: BSD's cannot be used again
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    async def kill(self) -> None:
        """Kills it as a power cut would."""
        await self._children.kill(NAME)


@asynccontextmanager
async def running_mosquitto(folder: Path) -> AsyncIterator[Mosquitto]:
    """Runs Mosquitto as long as the block lasts.

    Raises:
        TunefleetError: It is not installed, or ended at once.
    """
    program = shutil.which(NAME) or shutil.which(NAME, path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise TunefleetError(
            "mosquitto is not installed; run: apt install mosquitto, or brew install mosquitto"
        )
    folder.mkdir(parents=True, exist_ok=True)
    async with Children(folder, 1, (program,)) as children:
        broker = Mosquitto(children, folder)
        await broker.start()
        yield broker
