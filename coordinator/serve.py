"""Runs a coordinator over MQTT until it is told to stop.

SIGTERM and SIGINT end it in order: the message in hand is settled, the will is published, all state is on
disk.
"""

import asyncio
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
from coordinator.events.telling import Complaints, Tell, teller
from coordinator.first_version import check_base
from coordinator.ledger.state import CoordinatorState
from coordinator.observers.status import StatusNotes
from coordinator.observers.terminal import Terminal
from coordinator.place import Sessions, coordinator_place, describe_coordinator
from coordinator.server import Coordinator
from edge.delivery.inquiry import Found
from edge.delivery.place import Place
from edge.errors import BrokerRefused, PlaceTaken
from edge.events import Show
from edge.protocol.signing import Signer, alias_of, public_key
from edge.transport.mqtt.transport import MqttTransport

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
    mqtt_settings(config, "")  # what is wrong with them is told before anything is made
    _check_data(config)
    config = structs.replace(config, base=str(find_base(config.base)))
    with CoordinatorState(Path(config.state), config.fleet) as state:
        check_base(config, state)
        settings = mqtt_settings(config, alias_of(state.key))
        observers = (Terminal(show), StatusNotes(state.journal))
        tell = teller(observers)
        asker, warn = Signer(state.key, 0), Complaints(tell, time.monotonic)
        place = coordinator_place(config.fleet, asker, lambda: MqttTransport(settings.aside()), warn)
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


async def _begin(place: Place, state: CoordinatorState, tell: Tell) -> Signer:
    """Begins a session, if no copy of this coordinator is there; tells what is amiss.

    Another key that answers for the fleet may be anybody's: it keeps nobody from serving a fleet that exists,
    and only who is about to found one under that name is told to take another.

    Raises:
        PlaceTaken: A copy serves already; or the fleet is new here, and somebody answers for it.
    """
    fleet, key = place.seat.fleet, public_key(state.key)
    sessions = Sessions(fleet, key)
    try:
        found = await place.look(sessions.filters, sessions.hear)
    except BrokerRefused:  # as in `Place.claim`
        found = Found()
    now, current = time.time(), state.versions.current()
    if found.stranger and current is None:
        raise PlaceTaken(
            f"fleet {fleet} is served already by {describe_coordinator(found, key)}; stop that one first, or "
            "found this fleet under another --fleet"
        )
    if found.stranger:
        place.tell_stranger(found)
    if current and sessions.version > current.version:
        tell(Restored(current.version, sessions.version))
    if now * 1000 < state.last_epoch:
        told = (
            "this machine's clock is behind this state's last session; if the state was restored, set the "
            "clock first: devices follow later sessions only"
        )
        tell(Warned(told))
    for stranger in sorted(sessions.strangers):
        tell(OtherKeyFound(stranger))
    return state.begin_session(now, sessions.epoch)


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
