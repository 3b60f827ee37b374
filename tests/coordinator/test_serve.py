"""The command over Mosquitto: a real broker, a coordinator process that is killed, a device by hand."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing

import pytest

from coordinator.ledger.sqlite import SqliteJournal
from edge.protocol.codec import encode_adapter
from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(not shutil.which("mosquitto"), reason="the mosquitto program is not installed"),
]


@pytest.fixture
def broker(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "m.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen(["mosquitto", "-c", str(tmp_path / "m.conf")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"mqtt://127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.fixture
def serve(fleet, broker, tmp_path):
    started = []

    def start():
        options = {"--broker": broker, "--fleet": "home", "--base": fleet.base, "--state": fleet.folder}
        options |= {"--rank": 4, "--buffer-size": 2, "--attempts": 0}
        arguments = [str(part) for pair in options.items() for part in pair]
        command = [sys.executable, "-m", "tunefleet", "serve", *arguments]
        with (tmp_path / "log").open("a") as log:
            started.append(subprocess.Popen(command, stdout=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_coordinator_that_is_killed_goes_on_and_one_that_is_told_to_stop_does(
    fleet, broker, serve, tmp_path
):
    device = fleet.device("x")
    device.transport = MqttTransport(MqttSettings.from_url(broker, "home-device-x"))

    async def scenario():
        process = serve()
        async with asyncio.timeout(60), device.joined():
            assert (await device.teach(seed=1))[0].status == "accepted"
            manifest = device.manifests["r4"]
            delta = (await device.teach(seed=2, attempt=1))[1]
            await device.manifest(version=1)
            payload = encode_adapter(delta, "f32")
            header = device.header(manifest, payload, attempt=2)
            await device.send_header(header)
            await device.send_chunks(header, payload, range(1))
            process.kill()
            process.wait()
            process = serve()
            assert (await device.upload(header, payload)).status in ("missing", "accepted")
            await device.until(
                lambda: any(r.update == header.update and r.status == "accepted" for r in device.receipts)
            )
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0

    asyncio.run(scenario())
    assert "stopped; state is on disk" in (tmp_path / "log").read_text()
    with closing(SqliteJournal(fleet.folder)) as journal:
        assert [update.merged_into for update in journal.updates()] == [None, 1, 1]
    command = [sys.executable, "-m", "tunefleet", "status", "--state", str(fleet.folder), "--json"]
    report = json.loads(subprocess.check_output(command))
    assert (report["version"], report["waiting"], report["accepted"]) == (1, 1, 3)
