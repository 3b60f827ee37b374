"""A fleet under fire: coordinator, devices and Mosquitto as processes, a link before each client."""

import asyncio
import json
import os
import shutil
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import msgspec

from benchmarks.faults.audit.evidence import read_header
from benchmarks.faults.links import Link
from benchmarks.faults.programs import Program
from benchmarks.faults.record import FLEET, KEPT, LABORATORY, Recorder, Settings
from benchmarks.faults.schedule import BROKER, COORDINATOR
from benchmarks.faults.shim.shim import Shim, compile_shim
from benchmarks.faults.witness import Sight, Witness
from converters.errors import TunefleetError
from coordinator.config import config_text
from coordinator.config import read_config as read_coordinator_config
from edge.backends.toy import make_toy_base
from edge.device.config import read_config as read_device_config

GRACE_S = 20.0
MOSQUITTO = """
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
user root
log_type error
log_type warning
"""


class Fleet:
    """The processes of one run; used as `async with Fleet(…) as fleet:`.

    Args:
        folder: Of the run.
        settings: Of the run.
        recorder: Gets all that happens.

    Attributes:
        programs: By name: `coordinator`, `broker`, the devices.
        links: Of the coordinator and the devices.
        shims: Their clocks and disks.
        broker_port: Where the broker listens, without a link.
    """

    def __init__(self, folder: Path, settings: Settings, recorder: Recorder) -> None:
        self.folder, self.settings, self.recorder = folder, settings, recorder
        self.programs: dict[str, Program] = {}
        self.links: dict[str, Link] = {}
        self.shims: dict[str, Shim] = {}
        self.broker_port = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def broker_folder(self) -> Path:
        """Returns where the broker keeps what it keeps."""
        return self.folder / "broker"

    async def stop(self) -> None:
        """Asks all to end, devices first; who does not is noted and killed."""
        devices = [self.programs[name] for name in self.settings.wish.devices]
        for programs in (devices, [self.programs[COORDINATOR]], [self.programs[BROKER]]):
            in_time = await asyncio.gather(*(program.stop(GRACE_S) for program in programs))
            for program, is_in_time in zip(programs, in_time, strict=True):
                if not is_in_time:
                    self.recorder.note(program.name, "hung", text=f"did not end within {GRACE_S:.0f} s")

    async def _begin(self) -> None:
        for path in (self.broker_folder, self.folder / KEPT, self.folder / "logs"):
            path.mkdir(parents=True)
        base = make_toy_base(self.folder / "base", dim=self.settings.dim)
        rows = [{"prompt": f"light {n} on", "completion": f" set({n}, 1)"} for n in range(8)]
        (self.folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        port = self.broker_port = await self._start_broker()
        witness = self._stack.enter_context(Witness(self._see))
        library = compile_shim(self.folder)
        for name in (COORDINATOR, *self.settings.wish.devices):
            state = self.state_folder(name)
            state.mkdir(parents=True)
            if name != COORDINATOR:
                (state / "spool").mkdir()
                witness.watch(name, state / "spool")
            self.links[name] = await self._stack.enter_async_context(Link(port))
            self.shims[name] = Shim(library, self.folder / f"{name}.control", state)
        self._add(COORDINATOR, *self._coordinator(base))
        for name in self.settings.wish.devices:
            self._add(name, *self._device(name, base))
        for name in (COORDINATOR, *self.settings.wish.devices):
            await self.programs[name].start()

    def state_folder(self, name: str) -> Path:
        """Returns a program's state folder."""
        return self.folder / COORDINATOR if name == COORDINATOR else self.folder / "devices" / name

    async def _start_broker(self) -> int:
        found = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if found is None:
            raise TunefleetError("mosquitto is not installed; run: apt install mosquitto")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        lines = [MOSQUITTO.format(port=port)]
        limits = msgspec.structs.asdict(self.settings.limits)
        if limits.pop("persistence"):
            lines.append(
                f"persistence true\npersistence_location {self.broker_folder.resolve()}/\nautosave_interval 5"
            )
        lines += [f"{name} {value}" for name, value in limits.items() if value]
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        self._add(BROKER, [found, "-c", str(config)], b"")
        await self.programs[BROKER].start()
        while not _listens(port):
            await asyncio.sleep(0.05)
        return port

    def _add(self, name: str, command: list[str], given: bytes) -> None:
        environment = dict(self.shims[name].environment) if name in self.shims else {}
        environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        program = Program(
            name,
            command,
            self.folder / "logs" / f"{name}.log",
            self.recorder.hear,
            self._ended,
            environment,
            given,
        )
        self.programs[name] = program
        self._stack.push_async_callback(program.stop, 0.1)

    def _coordinator(self, base: Path) -> tuple[list[str], bytes]:
        settings = self.settings
        recipe = {
            "steps": settings.steps,
            "seq_tokens": 64,
            "batch_tokens": 64,
            "attempts": settings.attempts,
        }
        config = read_coordinator_config(
            None,
            {
                "broker": f"mqtt://127.0.0.1:{self.links[COORDINATOR].port}", "waits_for_broker": True,
                "fleet": FLEET, "base": str(base), "state": str(self.state_folder(COORDINATOR)),
                "ranks": (settings.rank,), "strategy": "fedbuff", "space": "factors", "encoding": "f32",
                "buffer_size": max(1, len(settings.wish.devices) // 2), "time_budget_s": 2.0,
                "chunk_bytes": 8192, "keep_versions": 1_000_000, "recipe": recipe,
            },
        )  # fmt: skip
        path = self.folder / "coordinator.toml"
        path.write_text(config_text(config))
        return [sys.executable, "-m", "tunefleet", "serve", "--config", str(path), "--json"], b""

    def _device(self, name: str, base: Path) -> tuple[list[str], bytes]:
        config = read_device_config(
            None,
            {
                "broker": f"mqtt://127.0.0.1:{self.links[name].port}", "waits_for_broker": True,
                "fleet": FLEET, "base": str(base), "data": {"path": str(self.folder / "data.jsonl")},
                "device_id": name, "state": str(self.state_folder(name)), "backend": "toy",
                "patience_s": self.settings.patience_s,
                "max_rank": self.settings.rank, "slowdown": self.settings.slowdown,
            },
        )  # fmt: skip
        return [sys.executable, "-m", "edge.device.process", "--json"], msgspec.json.encode(config)

    def _see(self, sight: Sight) -> None:
        """Notes what entered a spool, and keeps its payload for the audit; called from a thread."""
        if sight.path.name.startswith("."):
            return
        try:
            header = read_header(sight.path)
            facts = {"base_version": header.base_version, "attempt": header.attempt}
            self.recorder.note(LABORATORY, "entered", device=sight.who, update=header.update, **facts)
            os.link(sight.path / "payload.bin", self.folder / KEPT / header.update)
        except (OSError, msgspec.MsgspecError) as error:  # it has gone again already
            self.recorder.note(LABORATORY, "missed", device=sight.who, name=sight.path.name, text=str(error))

    def _ended(self, name: str, status: int) -> None:
        log = (self.folder / "logs" / f"{name}.log").read_bytes()[-2000:].decode(errors="replace")
        self.recorder.note(name, "exit", status=status, text=log.strip().rpartition("\n")[2])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
