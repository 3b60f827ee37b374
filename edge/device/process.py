"""The client as a process: settings come in on stdin, signals end it in order.

`tunefleet join` becomes this process once its command line is read: a client waits for days, and without the
command line's libraries it does so in 51 MB instead of 62.

Run as: python -m edge.device.process [--log-level info] [--json] [--verbose] < settings.json
"""

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

import msgspec

from converters.errors import TunefleetError
from converters.plain import plain
from edge.backends import resolve_backend
from edge.complaints import Complaints
from edge.device.capability_card import device_presence
from edge.device.client import Client
from edge.device.config import DeviceConfig, mqtt_settings
from edge.device.place import device_place
from edge.device.state import DeviceState, fresh_memory
from edge.events import Event, Show, shown
from edge.training.requests import Loaded
from edge.training.worker.supervisor import Worker
from edge.transport.mqtt.transport import MqttTransport


async def run_client(config: DeviceConfig, show: Show) -> None:
    """Runs a client over MQTT, until SIGTERM or SIGINT.

    Raises:
        BaseModelError, StateError, MissingExtra: This device is not as its configuration says.
        TransportError: As `Client.run`, and whatever else that raises.
    """
    base = Path(config.base)
    backend = resolve_backend(config.backend, base)
    show(Event("backend", f"{backend.name}: {backend.why}", {"backend": backend.name, "why": backend.why}))
    with DeviceState(Path(config.state), fresh_memory(config)) as state:
        presence = device_presence(config.fleet, config.device_id, state.signer)
        settings = mqtt_settings(config, state.signer.alias)
        warn = Complaints(lambda told: show(Event("warning", told, {})), time.monotonic)
        place = device_place(
            config.fleet, config.device_id, state.signer, lambda: MqttTransport(settings.aside()), warn
        )
        client = Client(
            config,
            backend=backend.name,
            state=state,
            transport=MqttTransport(settings, presence, claim=place.claim),
            place=place,
            worker=Worker(
                base, config.backend, config.precision, on_loaded=lambda loaded: show(_loaded(loaded))
            ),
            show=show,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, client.stop)
        await client.run()


def _loaded(loaded: Loaded) -> Event:
    facts = {"backend": loaded.backend, "precision": loaded.precision, "why": loaded.precision_why}
    return Event("loaded", loaded.described, facts)


def main() -> None:
    """Runs the client; an error that the user can mend is one line, and exit status 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=DeviceConfig)
    try:
        with shown(options.json, log_level=options.log_level) as show:
            asyncio.run(run_client(config, show))
    except TunefleetError as error:
        sys.exit(f"tunefleet: {plain(error.whole if options.verbose else error)}")


if __name__ == "__main__":
    main()
