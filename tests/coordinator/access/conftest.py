"""Real brokers with the configuration that `broker-config` writes, and clients that try things with them."""

import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from coordinator.access.certificates import Certificates
from coordinator.access.writing import broker_files, broker_plan, write_files

PROGRAMS = {"mosquitto": "mosquitto", "nats": "nats-server"}
PLACES = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin"
COORDINATOR = "home_coordinator"


class Member:
    """A client with one certificate, as its holder uses it."""

    def __init__(self, site, name, certs, *, client_id=None, will=None, port=None, is_clean=True):
        self.heard, self.grants = [], {}
        self._lock = threading.Condition()
        self._connected = self._lost = False
        self._acknowledged = set()
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id or f"{name}-of-its-own", clean_session=is_clean,
            protocol=mqtt.MQTTv311, reconnect_on_failure=False,
        )  # fmt: skip
        context = ssl.create_default_context(cafile=site.certs / "broker/devices-ca.crt")
        if certs is not None:
            context.load_cert_chain(certs / "tls.crt", certs / "tls.key")
        self.client.tls_set_context(context)
        if will:
            self.client.will_set(*will, qos=1, retain=True)
        self.client.on_connect = self._on(
            lambda reason: setattr(self, "_connected", not reason.is_failure), 2
        )
        self.client.on_disconnect = self._on(lambda reason: setattr(self, "_lost", True), 2)
        self.client.on_publish = self._note
        self.client.on_message = self._hear
        self.client.on_subscribe = self._granted
        self._port = port or site.port_of(name)

    def _on(self, change, place):
        def callback(*arguments):
            with self._lock:
                change(arguments[place + 1])
                self._lock.notify_all()

        return callback

    def _note(self, client, data, mid, *_):
        with self._lock:
            self._acknowledged.add(mid)
            self._lock.notify_all()

    def _hear(self, client, data, message):
        with self._lock:
            self.heard.append((message.topic, message.payload.decode()))
            self._lock.notify_all()

    def _granted(self, client, data, mid, reasons, *_):
        with self._lock:
            self.grants[mid] = not reasons[0].is_failure
            self._lock.notify_all()

    def _wait(self, condition, within_s=5.0):
        with self._lock:
            return self._lock.wait_for(condition, within_s)

    def connect(self):
        """Tells whether the broker lets it in."""
        try:
            self.client.connect("127.0.0.1", self._port, keepalive=30)
        except OSError:
            return False
        self.client.loop_start()
        self._wait(lambda: self._connected or self._lost)
        return self._connected and not self._lost

    @property
    def is_here(self):
        return self._connected and not self._lost

    def publish(self, topic, payload, *, retain=False):
        """Publishes, and waits until the broker has taken it, or has ended the connection."""
        mid = self.client.publish(topic, payload, qos=1, retain=retain).mid
        self._wait(lambda: mid in self._acknowledged or self._lost, 2.0)

    def subscribe(self, topic):
        _, mid = self.client.subscribe(topic, qos=1)
        self._wait(lambda: mid in self.grants or self._lost, 2.0)
        return self.grants.get(mid, False)

    def hears(self, topic, payload, within_s=5.0):
        return self._wait(lambda: (topic, payload) in self.heard, within_s)

    def vanish(self):
        """Its machine loses power: the broker sends the will."""
        self.client.socket().close()
        self.client.loop_stop()

    def leave(self):
        """Ends it, also again; a client that nothing refers to closes the sockets that it wakes by."""
        client, self.client = self.client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()
            client.on_connect = client.on_disconnect = client.on_publish = None
            client.on_message = client.on_subscribe = None


class Site:
    """A broker of one kind with rights in force, and all who have certificates for it."""

    def __init__(self, kind, folder, stack):
        self.kind, self.folder, self._stack = kind, folder, stack
        self.certs = folder / "certs"
        held = Certificates(self.certs, "home", time.time())
        held.found()
        held.add_broker(["127.0.0.1", "localhost"], 30)
        held.add_coordinator(30)
        for name in ("lamp", "pi4"):
            held.add_device(name, 30)
        self.port, self.coordinator_port = free_port(), free_port()
        self._broker = None

    def port_of(self, name):
        return self.coordinator_port if name == COORDINATOR and self.kind == "mosquitto" else self.port

    def folder_of(self, name):
        return self.certs / ("coordinator" if name == COORDINATOR else f"devices/{name}")

    def write(self):
        plan = broker_plan(
            None, self.certs, port=self.port, coordinator_port=self.coordinator_port, max_devices=50,
            at=time.time(),
        )  # fmt: skip
        out = self.folder / "broker"
        files = dict(broker_files(self.kind, plan, out))
        if self.kind == "mosquitto":  # root's tests: it would change its user, and could not write here
            own = files["mosquitto.conf"].replace("/var/lib/mosquitto/", f"{out}/")
            files["mosquitto.conf"] = own + "user root\n"
        write_files(out, files)
        return out

    def start(self):
        out, program = self.write(), shutil.which(PROGRAMS[self.kind], path=PLACES)
        command = {"mosquitto": ["-c", out / "mosquitto.conf"], "nats": ["-c", out / "nats.conf"]}[self.kind]
        with (self.folder / "broker.log").open("a") as log:
            self._broker = subprocess.Popen([program, *command], stdout=log, stderr=log)
        self._stack.callback(self.stop)
        deadline = time.monotonic() + 10
        while not listens(self.port):
            assert time.monotonic() < deadline, (self.folder / "broker.log").read_text()
            time.sleep(0.02)

    def at_end(self, do):
        """Has something done when the test is over."""
        self._stack.callback(do)

    def stop(self):
        self._broker.terminate()
        self._broker.wait()

    def reload(self):
        """Writes the configuration anew, and has the broker read it and its lists again while it runs."""
        self.write()
        self._broker.send_signal(signal.SIGHUP)
        time.sleep(0.5)

    def member(self, name, certs=None, **options):
        """A client with somebody's certificate; NATS lets who was thrown out wait a little."""
        deadline = time.monotonic() + 10
        while True:
            found = self.stranger(name, certs or self.folder_of(name), **options)
            if found.connect():
                return found
            assert time.monotonic() < deadline, (self.folder / "broker.log").read_text()
            time.sleep(0.2)

    def stranger(self, name, certs, **options):
        """A client of whom it is not said that it is let in."""
        found = self.passer_by(name, certs, **options)
        self._stack.callback(found.leave)
        return found

    def passer_by(self, name, certs, **options):
        """A client that leaves by itself."""
        return Member(self, name, certs, **options)

    def certificates(self):
        return Certificates(self.certs, None, time.time())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(params=["mosquitto", "nats"])
def site(request, tmp_path):
    if shutil.which(PROGRAMS[request.param], path=PLACES) is None:
        pytest.skip(f"the program {PROGRAMS[request.param]} is not installed")
    with ExitStack() as stack:
        found = Site(request.param, Path(tmp_path), stack)
        found.start()
        yield found
