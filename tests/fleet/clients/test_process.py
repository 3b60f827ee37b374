"""The client as its user starts it: a process over Mosquitto, killed, stopped and started again."""

import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from edge.backends.toy import make_toy_base
from edge.protocol.topics import Topics
from edge.settings import write_toml
from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

ROOT = Path(__file__).parents[3]
MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/opt/homebrew/sbin")
RECIPE = {"steps": 8, "seq_tokens": 64, "batch_tokens": 128}
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(MOSQUITTO is None, reason="the mosquitto program is not installed"),
]


class Mosquitto:
    """A broker with its persistence on."""

    def __init__(self, folder):
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\n"
            f"persistence true\npersistence_location {folder}/\n"
        )

    def client(self, client_id, presence=None):
        return MqttTransport(MqttSettings.from_url(self.url, client_id), presence, max_backoff_s=0.2)

    @asynccontextmanager
    async def running(self):
        await self.start()
        try:
            yield
        finally:
            self.stop()

    async def start(self):
        self._process = subprocess.Popen([MOSQUITTO, "-c", self._config], **QUIET)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            await asyncio.sleep(0.02)

    def stop(self):
        self._process.terminate()
        self._process.wait()


class Program:
    """`tunefleet join` with `--json`."""

    def __init__(self, home, broker, *flags, device_id="lamp", **settings):
        config = home.device_config(device_id, broker=broker.url, **settings)
        path = home.folder / f"{device_id}.toml"
        path.write_text(write_toml(config))
        self.command = [sys.executable, "-m", "tunefleet", "join", "--config", path, "--json", *flags]
        self.events = []

    async def start(self):
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(*self.command, cwd=ROOT, stdout=pipe, stderr=pipe)

    async def until(self, kind):
        """The next event of a kind; an end without one fails."""
        async with asyncio.timeout(60):
            while line := await self.process.stdout.readline():
                self.events.append(json.loads(line))
                if self.events[-1]["event"] == kind:
                    return self.events[-1]
        raise AssertionError(f"ended before {kind}: {(await self.process.stderr.read()).decode()}")

    async def end(self, number=signal.SIGTERM):
        """Exit status and what it said on standard error."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        _, said = await asyncio.wait_for(self.process.communicate(), 60)
        return self.process.returncode, said.decode()


@pytest.fixture
def broker(tmp_path):
    return Mosquitto(tmp_path)


@asynccontextmanager
async def serving(home, broker, **settings):
    async with home.coordinator(
        lambda presence: broker.client("coordinator", presence), **{"recipe": RECIPE} | settings
    ) as coordinator:
        yield coordinator


def counted(home):
    """What the journal holds: base versions and attempts, in order."""
    with closing(sqlite3.connect(home.folder / "coordinator" / "journal.sqlite")) as db:
        return sorted(db.execute("SELECT base_version, attempt FROM updates WHERE status != 'rejected'"))


@pytest.mark.parametrize("stage", ["joined", "downloading", "training", "spooled", "accepted"])
def test_a_client_killed_at_any_stage_loses_nothing_and_counts_once(home, broker, stage):
    async def way():
        async with broker.running(), serving(home, broker, buffer_size=100):
            program = Program(home, broker, slowdown=20.0)
            await program.start()
            await program.until(stage)
            assert (await program.end(signal.SIGKILL))[0] == -signal.SIGKILL
            await program.start()
            if stage == "accepted":
                await program.until("waiting")
            else:
                await program.until("accepted")
            assert await program.end() == (0, "")

    asyncio.run(way())
    assert counted(home) == [(0, 0)]


@pytest.mark.parametrize("seed", range(3))
def test_a_client_killed_again_and_again_at_random_moments_counts_each_version_once(home, broker, seed):
    moments = random.Random(seed)

    async def way():
        async with broker.running(), serving(home, broker):
            for _ in range(5):
                program = Program(home, broker, slowdown=3.0, checkpoint_every_s=0.0)
                await program.start()
                await program.until("joined")
                await asyncio.sleep(moments.uniform(0, 1.2))
                await program.end(signal.SIGKILL)
            program = Program(home, broker, max_tasks=2)
            await program.start()
            await program.until("stopped")
            assert await program.end(0) == (0, "")

    asyncio.run(way())
    versions = counted(home)
    assert len(versions) >= 2
    assert versions == [(version, 0) for version in range(len(versions))]


@pytest.mark.parametrize("seed", range(2))
def test_a_client_killed_while_it_uploads_counts_once(home, broker, seed):
    """An update of half a megabyte, eight chunks; killed within the time that sending it takes."""
    moments = random.Random(seed)
    home.base = make_toy_base(home.folder / "large", dim=512)

    async def way():
        settings = {"ranks": (64,), "encoding": "f32", "chunk_bytes": 65536, "buffer_size": 100}
        async with broker.running(), serving(home, broker, **settings):
            program = Program(home, broker)
            await program.start()
            await program.until("spooled")
            for _ in range(4):
                await asyncio.sleep(moments.uniform(0, 0.03))
                await program.end(signal.SIGKILL)
                await program.start()
                await program.until("joined")
            await program.until("waiting")
            while list((home.folder / "lamp" / "spool").iterdir()):
                await asyncio.sleep(0.02)
            assert (await program.end())[0] == 0

    asyncio.run(way())
    assert counted(home) == [(0, 0)]


def test_sigterm_ends_in_order_with_a_checkpoint_and_says_offline(home, broker):
    async def way():
        watcher = broker.client("watcher")
        async with broker.running(), serving(home, broker), watcher:
            program = Program(home, broker, slowdown=500.0)
            await program.start()
            await program.until("training")
            assert await program.end() == (0, "")
            assert list((home.folder / "lamp" / "task").glob("*/checkpoint*"))
            await watcher.subscribe(Topics("home").device("lamp", "state"))
            message = await anext(watcher.messages())
            assert json.loads(message.payload)["body"]["online"] is False

    asyncio.run(way())


def test_a_broker_that_restarts_is_found_again(home, broker):
    async def way():
        async with broker.running(), serving(home, broker):
            program = Program(home, broker, slowdown=20.0)
            await program.start()
            await program.until("training")
            broker.stop()
            await asyncio.sleep(0.5)
            await broker.start()
            await program.until("accepted")
            await program.until("accepted")
            assert (await program.end())[0] == 0

    asyncio.run(way())


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="prlimit is Linux's own")
def test_a_full_disk_is_told_and_waited_for_and_nothing_is_lost(home, broker):
    async def way():
        async with broker.running(), serving(home, broker):
            program = Program(home, broker, slowdown=50.0)
            await program.start()
            await program.until("training")
            limits = resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE)
            # Files may not grow beyond 256 bytes: less than an update has.
            resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (256, limits[1]))
            warning = await program.until("warning")
            assert "no room for an update (File too large); free some, nothing was lost" in warning["text"]
            resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, limits)
            await program.until("accepted")
            assert [event["event"] for event in program.events].count("spooled") == 1
            assert (await program.end())[0] == 0

    asyncio.run(way())
    assert counted(home) == [(0, 0)]


def test_a_broker_that_is_not_there_is_one_line_and_status_1(home, broker):
    async def way():
        program = Program(home, broker)
        await program.start()
        status, said = await program.end(0)
        assert status == 1
        assert said.startswith(f"tunefleet: broker 127.0.0.1:{broker.port} cannot be reached")
        assert said.count("\n") == 1

    asyncio.run(way())


def test_a_broker_that_is_not_there_yet_is_waited_for_when_asked(home, broker):
    async def way():
        program = Program(home, broker, "--wait")
        await program.start()
        await asyncio.sleep(1.0)
        assert program.process.returncode is None
        async with broker.running():
            await program.until("joined")
            assert (await program.end())[0] == 0

    asyncio.run(way())


def test_a_waiting_client_has_less_than_40_mb_of_its_own(home, broker):
    """Beside them stand pages of libraries' files, which the kernel shares out and takes back as it likes."""

    async def way():
        async with broker.running():
            program = Program(home, broker)
            await program.start()
            await program.until("waiting")
            await asyncio.sleep(0.3)
            status = Path(f"/proc/{program.process.pid}/status")
            if status.exists():
                own = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
                assert int(own.split()[1]) * 1024 < 40e6
            await program.end()

    asyncio.run(way())


def test_the_client_needs_no_library_of_the_command_line_nor_of_training():
    unwanted = ("typer", "rich", "pydantic", "torch", "transformers", "mlx", "mlx_lm", "peft")
    code = f"import sys, edge.device.process; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
