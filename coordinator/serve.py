"""Runs a coordinator over MQTT until it is told to stop.

SIGTERM and SIGINT end it in order: the message in hand is settled, the will is published, all state is on
disk.
"""

import asyncio
import signal
import time
from pathlib import Path

from coordinator.config import CoordinatorConfig, mqtt_settings
from coordinator.intake import Say
from coordinator.server import Coordinator, Score, coordinator_presence
from coordinator.state import CoordinatorState
from edge.transport.mqtt import MqttTransport


def serve_fleet(config: CoordinatorConfig, say: Say) -> None:
    """Serves until `max_versions` are made, or until a signal.

    Raises:
        TransportError: The broker cannot be reached, or refuses.
        BaseModelError, UnsupportedAdapter: The base model does not fit the configuration.
        StateError: The state folder does not.
        DataError, MissingExtra: Versions cannot be scored.
        DiskFull: There is no room for version 0.
    """
    settings = mqtt_settings(config)
    score = _scorer(config)
    with CoordinatorState(Path(config.state), config.fleet) as state:
        presence = coordinator_presence(config.fleet, epoch=time.time_ns() // 1_000_000)
        transport = MqttTransport(settings, presence)
        asyncio.run(_run(Coordinator(config, state, transport, score=score, say=say)))


async def _run(coordinator: Coordinator) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, coordinator.stop)
    await coordinator.run()


def _scorer(config: CoordinatorConfig) -> Score | None:
    """Loads the model and the data at once, so that what is wrong with them is told at the start."""
    if config.eval_data is None:
        return None
    from coordinator.calibration import Calibration

    recipe = config.recipe
    calibration = Calibration(
        Path(config.base),
        Path(config.eval_data),
        seq_tokens=recipe.seq_tokens,
        batch_tokens=recipe.batch_tokens,
    )
    calibration.load()
    return calibration.score
