"""The protocol's model holds over a short walk, and each of its promises fails where its cause is taken out.

The long walk is `python -m benchmarks.faults.model`.
"""

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from benchmarks.faults.model import world
from benchmarks.faults.model.machine import Protocol
from edge.protocol.signing import read_signed


def walk(machine, walks, steps=100):
    short = settings(
        max_examples=walks, stateful_step_count=steps, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    run_state_machine_as_test(hypothesis.seed(0)(machine), settings=short)


def test_whatever_network_strangers_and_kills_do_every_update_counts_once_and_everything_ends():
    walk(Protocol, 30)


class TrustingCoordinator(world.Coordinator):
    """Keeps chunks without their proof."""

    def _take_chunk(self, update, number, message):
        upload = self.open.get(update)
        if upload is None or not 0 <= number < upload.received.total or upload.received.present[number]:
            return []
        length = len(upload.content[number * 1024 : (number + 1) * 1024])
        upload.content[number * 1024 : number * 1024 + length] = message[-length:].ljust(length, b"\0")
        upload.received.take(number)
        return self._settle(upload) if upload.received.is_complete else []


class ForgetfulCoordinator(world.Coordinator):
    """Loses its journal with every kill."""

    def begin(self):
        super().begin()
        self.journal.clear()


class SilentCoordinator(world.Coordinator):
    """Never says which chunks it waits for."""

    def _answer(self, upload):
        return super()._answer(upload) if upload.received.is_complete else []


class GullibleDevice(world.Device):
    """Takes a verdict on its update's id for one on its bytes."""

    def _take_receipt(self, message, now):
        signed = read_signed(message.payload)
        if self.spool and signed.key == self._coordinator and self.push is not None:
            receipt = self._keyring.open(message.topic, signed, world.Receipt).record
            if receipt.update == self.spool[0].header.update and receipt.status in ("accepted", "rejected"):
                self.dropped[self.spool.popleft().digest] = receipt
                self.push, self.flying = None, []
                return
        super()._take_receipt(message, now)


class DeafDevice(world.Device):
    """Never says again what was lost."""

    def send(self, now, window):
        return super().send(0.0, window)


class BlindDevice(world.Device):
    """Believes every chunk of its download."""

    def _take_chunk(self, topic, message):
        at = slice(topic.number * 1024, (topic.number + 1) * 1024)
        length = len(self.kept[at])
        if length <= len(message) and not self.received.present[topic.number]:
            self.kept[at] = message[-length:]
            self.received.take(topic.number)


@pytest.mark.parametrize(
    "broken",
    [TrustingCoordinator, ForgetfulCoordinator, SilentCoordinator, GullibleDevice, DeafDevice, BlindDevice],
)
def test_the_model_finds_what_is_broken(broken):
    class Broken(Protocol):
        def __init__(self):
            super().__init__()
            name = "coordinator" if issubclass(broken, world.Coordinator) else "device"
            getattr(self, name).__class__ = broken

    with pytest.raises((AssertionError, KeyError, ExceptionGroup)):
        walk(Broken, 400)
