"""The same with real processes and a real Mosquitto that knows no rights: anybody may publish anything."""

import subprocess
import time

import pytest

from edge.protocol.messages import Presence
from edge.protocol.signing import Signer, new_key
from edge.protocol.topics import Topics

pytestmark = [pytest.mark.broker, pytest.mark.torch, pytest.mark.timeout(240)]
TOPICS = Topics("home")


def publish(port, topic, payload, *, retain=True):
    """Publishes as a stranger with Mosquitto's own client does."""
    flags = ["-r"] if retain else []
    subprocess.run(
        ["mosquitto_pub", "-p", str(port), "-t", topic, "-s", *flags], input=payload, check=True, timeout=20
    )


def test_retained_junk_ends_no_process_and_nobody_is_answered(programs, mosquitto):
    deep = b'{"body":' + b"[" * 5000 + b"]" * 5000 + b"}"
    for topic in (
        TOPICS.version("r8"), TOPICS.coordinator, TOPICS.challenge, TOPICS.answer,
        *(TOPICS.device("lamp", kind) for kind in ("hello", "state", "want", "receipt", "telemetry")),
        TOPICS.up("lamp", "0" * 32, "header"), TOPICS.up("lamp", "0" * 32, "9" * 5000),
        TOPICS.blob("0" * 64, "9" * 5000),
    ):  # fmt: skip
        publish(mosquitto, topic, deep)
    coordinator = programs.serve("--steps", "1", "--buffer-size", "1")
    programs.until_logged("coordinator", "coordinator key")
    device = programs.join("lamp")
    programs.until_logged("coordinator", "version 1: ")
    topic = TOPICS.device("lamp", "state")
    forged = Signer(new_key(), 2**53).seal(topic, Presence(online=False))
    publish(mosquitto, topic, forged)
    publish(mosquitto, TOPICS.coordinator, forged)
    programs.until_logged("coordinator", "version 2: ")
    assert coordinator.poll() is None
    assert device.poll() is None
    assert "Traceback" not in programs.log("coordinator") + programs.log("lamp")
    device.terminate()
    assert device.wait(timeout=60) == 0
    again = programs.join("lamp")  # what is retained awaits it
    before = programs.log("coordinator").count("version ")
    deadline = time.monotonic() + 60
    while programs.log("coordinator").count("version ") <= before:
        assert time.monotonic() < deadline, programs.log("lamp")
        time.sleep(0.1)
    assert again.poll() is None
