"""An MQTT 3.1.1 broker inside this process, for the demo and for trying things out: amqtt, pure Python.

Nothing outlives it: for real fleets run Mosquitto with persistence on. It ends at once, whatever its clients
do.
"""

import asyncio
import hmac
import logging
import socket
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from edge.errors import MissingExtra, TransportError

try:
    from amqtt.broker import Broker
    from amqtt.contexts import BaseContext
    from amqtt.errors import AMQTTError
    from amqtt.plugins.base import BaseAuthPlugin
    from amqtt.session import Session
except ImportError as error:
    raise MissingExtra("amqtt, the embedded broker,", "broker") from error

CLOSING_S = 1.0  # its connections are cut by then, so it needs milliseconds


class PasswordPlugin(BaseAuthPlugin):  # type: ignore[misc]
    """Lets in the users of the configuration, and everybody when it has none."""

    @dataclass
    class Config:
        """User names to passwords."""

        users: dict[str, str] = field(default_factory=dict)

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._users: dict[str, str] = self._get_config_option("users", {})

    async def authenticate(self, *, session: Session) -> bool:
        """Tells whether the session's password is its user's."""
        if not self._users:
            return True
        expected = self._users.get(session.username or "")
        given = session.password or ""
        return expected is not None and hmac.compare_digest(expected.encode(), given.encode())


class CuttingBroker(Broker):  # type: ignore[misc]
    """amqtt's broker, which can cut the connections of all its clients."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._open: set[asyncio.StreamWriter] = set()
        self._is_cut = False

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Serves one connection until its end."""
        self._open.add(writer)
        if self._is_cut:
            writer.transport.abort()
        try:
            await super().stream_connected(reader, writer, listener_name)
        finally:
            self._open.discard(writer)

    def cut(self) -> None:
        """Ends every connection, those to come as well."""
        self._is_cut = True
        for writer in self._open:
            writer.transport.abort()


class EmbeddedBroker:
    """A broker on 127.0.0.1 while the context is entered.

    Args:
        port: Where it listens; 0 takes a free port.
        users: User names to passwords; without them anybody may connect.
    """

    def __init__(self, port: int = 0, users: dict[str, str] | None = None) -> None:
        self.port = port or _free_port()
        self._users = users or {}
        self._broker: CuttingBroker | None = None

    @property
    def url(self) -> str:
        """Returns what clients connect to."""
        return f"mqtt://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        """Starts listening.

        Raises:
            TransportError: The port is taken.
        """
        config = {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}},
            "plugins": {f"{__name__}.PasswordPlugin": {"users": self._users}},
        }
        self._broker = CuttingBroker(config)
        try:
            await self._broker.start()
        except (AMQTTError, OSError) as error:
            raise TransportError(f"no broker on port {self.port}: {error}; choose another port") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._broker is not None
        # amqtt asks each connection's reader to stop, once, and waits for it. A reader that has just been
        # given a packet misses that, and reads on for as long as its client talks; at an end of the stream
        # it stops by itself.
        self._broker.cut()
        try:
            async with asyncio.timeout(CLOSING_S):
                await self._broker.shutdown()
        except TimeoutError:
            logging.getLogger(__name__).warning("port %d: amqtt did not end in %g s", self.port, CLOSING_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
