"""Runs a coordinator over MQTT until it is told to stop.

SIGTERM and SIGINT end it in order: the message in hand is settled, the will is published, all state is on
disk.
"""

import asyncio
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from coordinator.config import CoordinatorConfig, mqtt_settings
from coordinator.server import Coordinator, coordinator_presence
from coordinator.state import CoordinatorState
from edge.events import Show
from edge.training.backends.hub import find_base
from edge.transport.mqtt import MqttTransport

if TYPE_CHECKING:
    from coordinator.calibration import Calibration


def serve_fleet(config: CoordinatorConfig, show: Show) -> None:
    """Serves until `max_versions` are made, or until a signal; `show` gets every event.

    Raises:
        TransportError: The broker cannot be reached, or refuses.
        BaseModelError, UnsupportedAdapter: The base model does not fit the configuration.
        StateError: The state folder does not.
        DataError, MissingExtra: Versions cannot be scored, or the calibration data cannot be used.
        DiskFull: There is no room for version 0.
    """
    settings = mqtt_settings(config)
    config = structs.replace(config, base=str(find_base(config.base)))
    score, calibrator = open_data(config)
    for calibration in dict.fromkeys(filter(None, (score, calibrator))):
        show(calibration.loaded())
    with CoordinatorState(Path(config.state), config.fleet) as state:
        presence = coordinator_presence(config.fleet, epoch=time.time_ns() // 1_000_000)
        transport = MqttTransport(settings, presence)
        coordinator = Coordinator(
            config, state, transport, score=score.score if score else None, calibrator=calibrator, show=show
        )
        asyncio.run(_run(coordinator))


async def _run(coordinator: Coordinator) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, coordinator.stop)
    await coordinator.run()


def open_data(config: CoordinatorConfig) -> "tuple[Calibration | None, Calibration | None]":
    """What versions are scored on and what steps are judged by, one object where it is the same file."""
    score = _open(config, config.eval_data)
    judging = config.calibration_data if config.stages_in_force.needs_calibration else None
    return score, score if judging == config.eval_data else _open(config, judging)


def _open(config: CoordinatorConfig, data: str | None) -> "Calibration | None":
    """Loads the model and the data at once, so that what is wrong with them is told at the start."""
    if data is None:
        return None
    from coordinator.calibration import Calibration

    recipe = config.recipe
    calibration = Calibration(
        Path(config.base),
        Path(data),
        seq_tokens=recipe.seq_tokens,
        batch_tokens=recipe.batch_tokens,
        precision=config.precision,
    )
    calibration.load()
    return calibration
