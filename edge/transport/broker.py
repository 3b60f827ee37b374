"""An MQTT 3.1.1 broker inside this process, for the demo and for trying things out: amqtt, pure Python.

Nothing outlives it: for real fleets run Mosquitto with persistence on.
"""

import hmac
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
        """Whether the session's password is its user's."""
        if not self._users:
            return True
        expected = self._users.get(session.username or "")
        given = session.password or ""
        return expected is not None and hmac.compare_digest(expected.encode(), given.encode())


class EmbeddedBroker:
    """A broker on 127.0.0.1 while the context is entered.

    Args:
        port: Where it listens; 0 takes a free port.
        users: User names to passwords; without them anybody may connect.
    """

    def __init__(self, port: int = 0, users: dict[str, str] | None = None) -> None:
        self.port = port or _free_port()
        self._users = users or {}
        self._broker: Any = None

    @property
    def url(self) -> str:
        """What clients connect to."""
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
        self._broker = Broker(config)
        try:
            await self._broker.start()
        except (AMQTTError, OSError) as error:
            raise TransportError(f"no broker on port {self.port}: {error}; choose another port") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._broker.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
