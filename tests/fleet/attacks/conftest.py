"""Fleets to attack, and a stranger: whoever may publish on the broker, with a key that nobody knows."""

import importlib.util
from pathlib import Path

import pytest

from edge.protocol.signing import Signer, new_key
from edge.protocol.topics import Topics
from edge.transport.memory import MemoryTransport

TESTS = Path(__file__).parents[2]


def _conftest(room):
    spec = importlib.util.spec_from_file_location(f"conftest_of_{room}", TESTS / room / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_coordinator = _conftest("coordinator")
base, fleet = _coordinator.base, _coordinator.fleet
home = _conftest("fleet/clients").home


class Stranger(MemoryTransport):
    """Publishes what it likes, signed by its own key where it signs."""

    def __init__(self, broker, name="stranger", epoch=2**50):
        super().__init__(broker, name)
        self.topics = Topics("home")
        self.signer = Signer(new_key(), epoch)
        self.heard = []

    async def say(self, topic, record, *, retain=False):
        await self.publish(topic, self.signer.seal(topic, record), retain=retain)

    async def keep(self, topic_filter, count):
        """Overhears so many messages."""
        await self.subscribe(topic_filter)
        async for message in self.messages():
            self.heard.append(message)
            if len(self.heard) >= count:
                return


@pytest.fixture
def stranger():
    return Stranger
