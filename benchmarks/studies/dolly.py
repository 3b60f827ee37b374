"""The real run: ten devices fine-tune on Dolly's ten clients over Mosquitto, and everything is killed once.

Mosquitto runs with persistence on; `tunefleet serve` and ten `tunefleet join` are real processes: four on
torch, three on MLX, three on llama.cpp with the same model in q8_0, q4_0 and float32. All accidents are
SIGKILL, and what was killed is started again: a third of the way in the broker, at the half the q4_0 device
with its worker, at two thirds the coordinator. In the end every update that a device spooled must stand in
the journal exactly once, or still lie in its spool; the fleet's adapter is compared with the base and with
each device trained alone, with torch, for as many steps.

Run as: python -m benchmarks.studies.dolly [--versions 32] [--seeds 3] [--out runs/dolly] [--json]
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.assets import ASSETS, dolly_clients, dolly_test
from benchmarks.measuring import as_json
from benchmarks.models import find_model
from benchmarks.mosquitto import NAME as BROKER
from benchmarks.mosquitto import Mosquitto, running_mosquitto
from converters.errors import TunefleetError
from coordinator.demo.fleet.record import read_record
from coordinator.demo.processes import Children, as_arguments
from edge.storage.spool import Spool

MODEL = "tinystories-656K"
BASE = ASSETS / "models" / MODEL


class Role(NamedTuple):
    """What one device plays."""

    backend: str
    slowdown: int  # a step takes this many times as long
    quant: str = ""  # type of its GGUF file; empty: the published folder


FLEET = (
    Role("torch", 1),
    Role("llama_cpp", 1, "q8_0"),
    Role("mlx", 1),
    Role("torch", 1),
    Role("llama_cpp", 2, "q4_0"),
    Role("mlx", 2),
    Role("torch", 3),
    Role("llama_cpp", 4, "f32"),
    Role("mlx", 6),
    Role("torch", 8),
)
NAMES = [f"device-{index}" for index in range(len(FLEET))]
COORDINATOR = "coordinator"
KILLED = NAMES[4]
STEPS = 10  # of one task
TRAINING = {"lr": 3e-3, "seq-tokens": 512, "batch-tokens": 1024}
NUM_CORES = 2  # commands at a time, after the fleet has ended
AWAY_S = 3.0  # from a kill to the next start
GRACE_S = 120.0  # a slow device ends its step first
POLL_S = 0.5


def write_rows(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Writes Dolly's rows as prompt and completion, in the form that Alpaca made common."""
    with path.open("w") as file:
        for row in rows:
            context = f"\n\n### Input:\n{row['context']}" if row["context"] else ""
            prompt = f"### Instruction:\n{row['instruction']}{context}\n\n### Response:\n"
            file.write(json.dumps({"prompt": prompt, "completion": row["response"]}) + "\n")


class Folder(NamedTuple):
    """Where things of one seed lie."""

    path: Path

    @property
    def state(self) -> Path:
        """The coordinator's folder."""
        return self.path / COORDINATOR

    def data(self, name: str) -> Path:
        """Returns the file of a device's rows, or of the test's."""
        return self.path / "data" / f"{name}.jsonl"

    def base(self, role: Role) -> Path:
        """Returns what a device trains on: a GGUF file, made here, or the model as it was published."""
        return find_model(MODEL, role.quant, self.path)

    def prepare(self) -> None:
        """Writes the ten devices' data, the global test rows and the GGUF files."""
        self.data("").parent.mkdir(parents=True, exist_ok=True)
        for name, rows in zip(NAMES, dolly_clients(), strict=True):
            write_rows(rows, self.data(name))
        write_rows(dolly_test(), self.data("test"))
        for role in FLEET:
            self.base(role)


class Fleet:
    """A coordinator and ten devices under way.

    Args:
        folder: Where everything lies.
        seed: Of the coordinator.
        broker: What they send through.
        children: Where their processes run.
    """

    def __init__(self, folder: Folder, seed: int, broker: Mosquitto, children: Children) -> None:
        self._folder, self._seed = folder, seed
        self._broker, self._children = broker, children
        self._began = time.monotonic()
        self._shown = -1
        self.accidents: list[dict[str, Any]] = []

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    async def start(self, name: str) -> None:
        """Starts the broker, the coordinator or a device."""
        if name == BROKER:
            await self._broker.start()
            return
        command = self._serve() if name == COORDINATOR else self._join(name)
        await self._children.start(name, command)

    async def kill(self, name: str) -> None:
        """Kills one of them and all its processes, and starts it again after a while."""
        await (self._broker.kill() if name == BROKER else self._children.kill(name))
        self.accidents.append({"what": f"{name} killed", "at_s": self.seconds})
        await asyncio.sleep(AWAY_S)
        await self.start(name)

    async def until(self, version: int) -> None:
        """Waits until a version is made.

        Raises:
            ChildFailed: A process ended.
        """
        while (current := current_version(self._folder.state)) < version:
            self._children.check(COORDINATOR, *NAMES)
            if current > self._shown:
                self._shown = current
                print(f"{self.seconds:7.1f} s  version {current}", flush=True)
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """Ends the devices, then the coordinator."""
        await asyncio.gather(*map(self._children.stop, NAMES))
        await self._children.stop(COORDINATOR)

    def _serve(self) -> list[str]:
        options = {"broker": self._broker.url, "fleet": "dolly", "base": BASE, "state": self._folder.state}
        options |= {"rank": 8, "buffer-size": 4, "steps": STEPS, "seed": self._seed, **TRAINING}
        return ["serve", *as_arguments(options), "--wait"]

    def _join(self, name: str) -> list[str]:
        role = FLEET[NAMES.index(name)]
        options: dict[str, object] = {"broker": self._broker.url, "fleet": "dolly", "device-id": name}
        options |= {"base": self._folder.base(role), "data": self._folder.data(name)}
        options |= {"state": self._folder.path / name, "backend": role.backend, "slowdown": role.slowdown}
        return ["join", *as_arguments(options), "--json"]


async def run_fleet(folder: Folder, num_versions: int, seed: int) -> dict[str, Any]:
    """Runs the fleet with its three accidents, and returns what they were and when."""
    async with (
        running_mosquitto(folder.path / "broker") as broker,
        Children(folder.path, 1, grace_s=GRACE_S) as children,
    ):
        fleet = Fleet(folder, seed, broker, children)
        for name in (COORDINATOR, *NAMES):
            await fleet.start(name)
        accidents = {BROKER: num_versions // 3, KILLED: num_versions // 2, COORDINATOR: 2 * num_versions // 3}
        for name, version in accidents.items():
            await fleet.until(version)
            await fleet.kill(name)
        await fleet.until(num_versions)
        seconds = fleet.seconds
        await fleet.stop()
    return {"seconds": seconds, "accidents": fleet.accidents}


def current_version(state: Path) -> int:
    """Returns the newest version in the coordinator's journal; -1 before there is one."""
    return max((version.version for version in read_record(state).versions), default=-1)


def spooled_updates(folder: Folder) -> list[str]:
    """Returns every update that a device put into its spool, from the devices' own events."""
    lines = [line for name in NAMES for line in (folder.path / f"{name}.out").read_text().splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return [event["update"] for event in events if event["event"] == "spooled"]


def audit(folder: Folder) -> dict[str, int]:
    """Counts where each spooled update is: merged, waiting, rejected, still in the spool, or lost."""
    updates = read_record(folder.state).updates
    journalled = {update.id: update.status for update in updates}
    spooled = spooled_updates(folder)
    states = [folder.path / name for name in NAMES]
    waiting = {
        entry.header.update
        for state in states
        for entry in Spool(state / "spool", state / "residual.safetensors").entries()
    }
    return {
        "spooled": len(spooled),
        "journalled": len(updates),
        "accepted": sum(status == "accepted" for status in journalled.values()),
        "rejected": sum(status == "rejected" for status in journalled.values()),
        "still_in_spool": len(set(spooled) & waiting),
        "journalled_twice": len(updates) - len(journalled),
        "lost": len(set(spooled) - journalled.keys() - waiting),
    }


async def score_all(folder: Folder, steps: Sequence[int], seed: int) -> dict[str, Any]:
    """Scores the base, the fleet's adapter and each device's own on the 80 test rows, all with torch."""
    slots = asyncio.Semaphore(NUM_CORES)
    async with Children(folder.path, 1) as children:

        async def run(name: str, command: str, options: dict[str, object]) -> dict[str, Any]:
            async with slots:
                printed = await children.run(name, [command, *as_arguments(options), "--json"])
            report: dict[str, Any] = json.loads(printed)
            return report

        async def loss(name: str, adapter: Path | None) -> float:
            options = {"base": BASE, "data": folder.data("test"), "backend": "torch", "adapter": adapter}
            return float((await run(f"score-{name}", "eval", options))["loss"])

        async def alone(name: str, num_steps: int) -> float:
            adapter = folder.path / f"alone-{name}"
            options = {"base": BASE, "data": folder.data(name), "out": adapter, "backend": "torch", "rank": 8}
            options |= {"steps": max(num_steps, STEPS), "seed": seed, **TRAINING}
            await run(f"train-{name}", "train", options)
            return await loss(name, adapter)

        adapter = folder.path / "fleet"
        await run("export", "export", {"state": folder.state, "out": adapter, "to": "peft"})
        base, fleet, *alones = await asyncio.gather(
            loss("base", None), loss("fleet", adapter), *map(alone, NAMES, steps)
        )
    return {"base": base, "fleet": fleet, "alone": alones, "alone_median": statistics.median(alones)}


async def run_once(out: Path, num_versions: int, seed: int) -> dict[str, Any]:
    """Runs one seed: the fleet with its accidents, then everybody alone."""
    shutil.rmtree(out, ignore_errors=True)
    folder = Folder(out)
    folder.prepare()
    result = await run_fleet(folder, num_versions, seed)
    accepted = read_record(folder.state).accepted
    steps = [STEPS * accepted[name] for name in NAMES]
    loss = await score_all(folder, steps, seed)
    found = {"audit": audit(folder), "versions": current_version(folder.state), "steps": steps, "loss": loss}
    return result | found


def is_won(result: dict[str, Any]) -> bool:
    """Returns whether the run shows what it has to."""
    loss, counts = result["loss"], result["audit"]
    is_better = loss["fleet"] < loss["base"] and loss["fleet"] < loss["alone_median"]
    return bool(is_better and counts["lost"] == 0 and counts["journalled_twice"] == 0)


def steps_by_backend(result: dict[str, Any]) -> dict[str, int]:
    """Sums up the optimizer steps in accepted updates."""
    steps: dict[str, int] = {}
    for role, count in zip(FLEET, result["steps"], strict=True):
        name = f"{role.backend} {role.quant}".strip()
        steps[name] = steps.get(name, 0) + count
    return steps


def show(seed: int, result: dict[str, Any]) -> None:
    """Prints one seed's figures, and its row in docs/real-run.md."""
    loss, counts = result["loss"], result["audit"]
    print(f"versions {result['versions']}, {result['seconds']:.0f} s, {sum(result['steps'])} steps merged")
    for accident in result["accidents"]:
        print(f"  {accident['what']} at {accident['at_s']:.0f} s")
    print("  updates: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    print("  test loss: " + ", ".join(f"{who} {loss[who]:.4f}" for who in ("base", "fleet", "alone_median")))
    print("  alone: " + " ".join(f"{value:.4f}" for value in loss["alone"]))
    print("  steps: " + ", ".join(f"{name} {count}" for name, count in steps_by_backend(result).items()))
    made = f"{result['versions']} in {result['seconds']:.0f} s"
    delivered = " | ".join(str(counts[name]) for name in ("spooled", "accepted", "rejected", "lost"))
    alone = f"{loss['alone_median']:.3f} ({min(loss['alone']):.3f})"
    print(f"| {seed} | {made} | {delivered} | {loss['base']:.3f} | **{loss['fleet']:.3f}** | {alone} |")


def main() -> None:
    """Runs all seeds; exit status 1 where one of them does not show what it has to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/dolly"))
    parser.add_argument("--json", action="store_true", help="the figures as JSON at the end")
    options = parser.parse_args()
    results = []
    try:
        for seed in range(options.seeds):
            results.append(asyncio.run(run_once(options.out / f"seed-{seed}", options.versions, seed)))
            show(seed, results[-1])
    except TunefleetError as error:
        sys.exit(f"tunefleet: {error}")
    if options.json:
        print(as_json(results))
    sys.exit(0 if all(map(is_won, results)) else 1)


if __name__ == "__main__":
    main()
