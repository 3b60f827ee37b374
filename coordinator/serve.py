"""Runs a coordinator over MQTT until it is told to stop.

SIGTERM and SIGINT end it in order: the message in hand is settled, the will is published, all state is on
disk.
"""

import asyncio
import secrets
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from converters.bases.read import find_base
from coordinator.announcing import coordinator_presence
from coordinator.config import CoordinatorConfig, mqtt_settings
from coordinator.events.records import OtherKeyFound, Restored, Stopped, Warned
from coordinator.events.telling import Tell, teller
from coordinator.first_version import check_base
from coordinator.ledger.state import CoordinatorState
from coordinator.observers.status import StatusNotes
from coordinator.observers.terminal import Terminal
from coordinator.place import Found, Place
from coordinator.server import Coordinator
from edge.errors import BrokerRefused
from edge.events import Show
from edge.protocol.signing import Signer, public_key
from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

if TYPE_CHECKING:
    from coordinator.calibration import Calibration

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve_fleet(config: CoordinatorConfig, show: Show) -> None:
    """Serves until `max_versions` are made, or until a signal; `show` gets every event.

    Raises:
        TransportError: The broker cannot be reached, or refuses.
        PlaceTaken: Another coordinator serves this fleet.
        BaseModelError, UnsupportedAdapter, AdapterError: The base model does not fit the configuration.
        StateError: The state folder does not.
        DataError, MissingExtra: Versions cannot be scored, or the calibration data cannot be used.
        DiskRefused: There is no room for version 0.
    """
    settings = mqtt_settings(config)
    _check_data(config)
    config = structs.replace(config, base=str(find_base(config.base)))
    with CoordinatorState(Path(config.state), config.fleet) as state:
        check_base(config, state)
        place = Place(config.fleet, public_key(state.key), lambda: MqttTransport(_aside(settings)))
        observers = (Terminal(show), StatusNotes(state.journal))
        tell = teller(observers)
        signer = asyncio.run(_until_signal(_begin(place, state, tell)))
        if signer is None:
            tell(Stopped(None))
            return
        place.take(signer)
        score, calibrator = open_data(config)
        for calibration in dict.fromkeys(filter(None, (score, calibrator))):
            tell(calibration.loaded())
        presence = coordinator_presence(config.fleet, signer)
        transport = MqttTransport(settings, presence, claim=place.claim)
        coordinator = Coordinator(
            config,
            state,
            transport,
            place=place,
            signer=signer,
            score=score.score if score else None,
            calibrator=calibrator,
            observers=observers,
        )
        asyncio.run(_run(coordinator))


def _aside(settings: MqttSettings) -> MqttSettings:
    """Returns settings for a connection beside the coordinator's own, of which the broker keeps nothing."""
    client_id = f"{settings.client_id}-{secrets.token_hex(4)}"
    return structs.replace(settings, client_id=client_id, session_expiry_s=0)


async def _begin(place: Place, state: CoordinatorState, tell: Tell) -> Signer:
    """Begins a session, if no other coordinator is there; tells what is amiss."""
    try:
        found = await place.look()
    except BrokerRefused:  # as in `Place.claim`
        found = Found()
    if found.holder:
        raise place.taken(found)
    now, current = time.time(), state.versions.current()
    if current and found.version > current.version:
        tell(Restored(current.version, found.version))
    if now * 1000 < state.last_epoch:
        told = (
            "this machine's clock is behind this state's last session; if the state was restored, set the "
            "clock first: devices follow later sessions only"
        )
        tell(Warned(told))
    for key in sorted(found.strangers):
        tell(OtherKeyFound(key))
    return state.begin_session(now, found.epoch)


async def _until_signal(work: Coroutine[Any, Any, Signer]) -> Signer | None:
    """Returns what `work` comes to; None where a signal came first."""
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return None


async def _run(coordinator: Coordinator) -> None:
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, coordinator.stop)
    await coordinator.run()


def open_data(config: CoordinatorConfig) -> "tuple[Calibration | None, Calibration | None]":
    """Opens what versions are scored on and what steps are judged by; one object where it is one file."""
    score = _open(config, config.eval_data)
    judging = config.calibration_data if config.method_in_force.needs_calibration else None
    return score, score if judging == config.eval_data else _open(config, judging)


def _check_data(config: CoordinatorConfig) -> None:
    """Tells what is wrong with the data before the broker or the model is waited for."""
    for data in filter(None, dict.fromkeys((config.eval_data, config.calibration_data))):
        from coordinator.calibration import look_through  # only here is the training wing needed

        look_through(Path(data))


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
