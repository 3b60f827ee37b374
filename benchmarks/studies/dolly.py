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
import json
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from benchmarks.models import ASSETS, find_model
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
KILLED = 4  # the device that is killed
STEPS = 10  # of one task
TRAINING = ["--lr", "3e-3", "--seq-tokens", "512", "--batch-tokens", "1024"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def write_rows(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Dolly's rows as prompt and completion, in the form that Alpaca made common."""
    with path.open("w") as file:
        for row in rows:
            context = f"\n\n### Input:\n{row['context']}" if row["context"] else ""
            prompt = f"### Instruction:\n{row['instruction']}{context}\n\n### Response:\n"
            file.write(json.dumps({"prompt": prompt, "completion": row["response"]}) + "\n")


def prepare(out: Path) -> Path:
    """Writes the ten devices' data, the global test rows and the GGUF files."""
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    source = ASSETS / "data/dolly15k"
    for index in range(len(FLEET)):
        write_rows(json.loads((source / f"local_training_{index}.json").read_text()), data / f"{index}.jsonl")
    write_rows(json.loads((source / "global_test.json").read_text()), data / "test.jsonl")
    for role in FLEET:
        base_of(role, out)
    return data


def base_of(role: Role, out: Path) -> Path:
    """What a device trains on: a GGUF file, made in `out`, or the model as it was published."""
    return find_model(MODEL, role.quant, out)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_broker(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Mosquitto with persistence in `folder`; returns when it listens."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
        f"persistence_location {folder.resolve()}/\nautosave_interval 5\n"
    )
    broker = subprocess.Popen(
        ["mosquitto", "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return broker
        time.sleep(0.1)


def tunefleet(*arguments: str, log: TextIO) -> subprocess.Popen[str]:
    """The command in the background, its lines in `log`."""
    command = [sys.executable, "-m", "tunefleet", *arguments]
    return subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,  # so that a device can be killed together with its worker
    )


def report(*arguments: str) -> Any:
    """The command's `--json` report."""
    command = [sys.executable, "-m", "tunefleet", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    return json.loads(done.stdout)


def join(out: Path, data: Path, url: str, index: int, log: TextIO) -> subprocess.Popen[str]:
    """Starts a device."""
    role = FLEET[index]
    options = {
        "broker": url,
        "fleet": "dolly",
        "base": base_of(role, out),
        "data": data / f"{index}.jsonl",
        "device-id": f"device-{index}",
        "state": out / f"device-{index}",
        "backend": role.backend,
        "slowdown": role.slowdown,
    }
    return tunefleet("join", *as_arguments(options), "--json", log=log)


def as_arguments(options: dict[str, object]) -> list[str]:
    """`--name value` for each."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


@contextmanager
def fleet(out: Path, data: Path, url: str, logs: list[TextIO]) -> Iterator[list[subprocess.Popen[str]]]:
    """Ten devices, ended by SIGTERM."""
    devices = [join(out, data, url, index, log) for index, log in enumerate(logs)]
    try:
        yield devices
    finally:
        for device in devices:
            device.send_signal(signal.SIGTERM)
        for device in devices:
            device.wait(timeout=120)


def current_version(state: Path) -> int:
    """The newest version in the coordinator's journal; -1 before there is one."""
    try:
        with sqlite3.connect(f"file:{state}/journal.sqlite?mode=ro", uri=True) as journal:
            (version,) = journal.execute("SELECT max(version) FROM versions").fetchone()
            return -1 if version is None else int(version)
    except sqlite3.OperationalError:
        return -1


def wait_for(state: Path, version: int, coordinator: subprocess.Popen[str], started_s: float) -> None:
    """Until `version` is made; ends with the coordinator's exit status if that dies."""
    shown = -1
    while (current := current_version(state)) < version:
        if coordinator.poll() is not None:
            raise SystemExit(f"the coordinator ended with {coordinator.returncode}; see its log")
        if current > shown:
            shown = current
            print(f"{time.monotonic() - started_s:7.1f} s  version {current}", flush=True)
        time.sleep(0.5)


def run_fleet(out: Path, data: Path, versions: int, seed: int) -> dict[str, Any]:
    """The fleet's run with its three accidents; returns what they were and when."""
    port = free_port()
    url, state = f"mqtt://127.0.0.1:{port}", out / "coordinator"
    options = {
        "broker": url,
        "fleet": "dolly",
        "base": BASE,
        "state": state,
        "rank": 8,
        "buffer-size": 4,
        "steps": STEPS,
        "seed": seed,
    }
    serve = ["serve", *as_arguments(options), *TRAINING, "--wait"]
    broker = start_broker(out / "broker", port)
    started_s = time.monotonic()
    accidents = []

    def killed(what: str) -> None:
        accidents.append({"what": f"{what} killed", "at_s": time.monotonic() - started_s})
        time.sleep(3)

    with (out / "coordinator.log").open("a") as log:
        coordinator = tunefleet(*serve, log=log)
        logs = [(out / f"device-{index}.log").open("a") for index in range(len(FLEET))]
        try:
            with fleet(out, data, url, logs) as devices:
                wait_for(state, versions // 3, coordinator, started_s)
                broker.kill()
                broker.wait()
                killed("broker")
                broker = start_broker(out / "broker", port)
                wait_for(state, versions // 2, coordinator, started_s)
                os.killpg(devices[KILLED].pid, signal.SIGKILL)
                devices[KILLED].wait()
                killed(f"device-{KILLED}")
                devices[KILLED] = join(out, data, url, KILLED, logs[KILLED])
                wait_for(state, 2 * versions // 3, coordinator, started_s)
                coordinator.kill()
                coordinator.wait()
                killed("coordinator")
                coordinator = tunefleet(*serve, log=log)
                wait_for(state, versions, coordinator, started_s)
            seconds = time.monotonic() - started_s
            coordinator.send_signal(signal.SIGTERM)
            coordinator.wait(timeout=60)
        finally:
            coordinator.kill()
            broker.terminate()
            broker.wait()
            for file in logs:
                file.close()
    return {"seconds": seconds, "accidents": accidents}


def spooled_updates(out: Path, index: int) -> list[str]:
    """Every update that a device put into its spool, from its own event lines."""
    lines = (out / f"device-{index}.log").read_text().splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return [event["update"] for event in events if event["event"] == "spooled"]


def audit(out: Path) -> dict[str, Any]:
    """Where each spooled update is: merged, waiting, rejected, still in the spool, or lost."""
    with sqlite3.connect(out / "coordinator/journal.sqlite") as journal:
        rows = journal.execute("SELECT id, status FROM updates").fetchall()
    journalled = dict(rows)
    spooled = [update for index in range(len(FLEET)) for update in spooled_updates(out, index)]
    folders = [out / f"device-{index}" for index in range(len(FLEET))]
    waiting = {
        entry.header.update
        for folder in folders
        for entry in Spool(folder / "spool", folder / "residual.safetensors").entries()
    }
    return {
        "spooled": len(spooled),
        "journalled": len(rows),
        "accepted": sum(status == "accepted" for status in journalled.values()),
        "rejected": sum(status == "rejected" for status in journalled.values()),
        "still_in_spool": len(set(spooled) & waiting),
        "journalled_twice": len(rows) - len(journalled),
        "lost": len(set(spooled) - journalled.keys() - waiting),
    }


def steps_of(out: Path) -> list[int]:
    """Optimizer steps that each device's accepted updates hold."""
    with sqlite3.connect(out / "coordinator/journal.sqlite") as journal:
        query = "SELECT device, count(*) FROM updates WHERE status = 'accepted' GROUP BY device"
        counts = dict(journal.execute(query).fetchall())
    return [STEPS * counts.get(f"device-{index}", 0) for index in range(len(FLEET))]


def train_alone(out: Path, data: Path, index: int, steps: int, seed: int) -> float:
    """Loss on the global test rows of a device that trained by itself, on its own data."""
    adapter = out / f"alone-{index}"
    options = {
        "base": BASE,
        "data": data / f"{index}.jsonl",
        "out": adapter,
        "backend": "torch",
        "rank": 8,
        "steps": steps,
        "seed": seed,
    }
    with (out / f"alone-{index}.log").open("w") as log:
        if tunefleet("train", *as_arguments(options), *TRAINING, log=log).wait():
            raise SystemExit(f"training alone failed: see {log.name}")
    return test_loss(data, adapter)


def test_loss(data: Path, adapter: Path | None) -> float:
    """Loss on the 80 global test rows, by the torch backend on the model as it was published."""
    options = {"base": BASE, "data": data / "test.jsonl", "backend": "torch"}
    chosen = {"adapter": adapter} if adapter else {}
    return float(report("eval", *as_arguments(options | chosen))["loss"])


def run_once(out: Path, versions: int, seed: int) -> dict[str, Any]:
    """One seed: the fleet with its accidents, then everybody alone."""
    shutil.rmtree(out, ignore_errors=True)
    data = prepare(out)
    result = run_fleet(out, data, versions, seed)
    result["audit"] = audit(out)
    result["versions"] = current_version(out / "coordinator")
    report("export", "--state", str(out / "coordinator"), "--out", str(out / "fleet"), "--to", "peft")
    result["steps"] = steps_of(out)
    with ThreadPoolExecutor(max_workers=2) as pool:
        alone = pool.map(
            lambda index: train_alone(out, data, index, max(result["steps"][index], STEPS), seed),
            range(len(FLEET)),
        )
        result["loss"] = {"base": test_loss(data, None), "fleet": test_loss(data, out / "fleet")}
        result["loss"]["alone"] = list(alone)
    result["loss"]["alone_median"] = statistics.median(result["loss"]["alone"])
    return result


def is_won(result: dict[str, Any]) -> bool:
    """What the run has to show."""
    loss, counts = result["loss"], result["audit"]
    is_better = loss["fleet"] < loss["base"] and loss["fleet"] < loss["alone_median"]
    return is_better and counts["lost"] == 0 and counts["journalled_twice"] == 0


def steps_by_backend(result: dict[str, Any]) -> dict[str, int]:
    """Optimizer steps in accepted updates."""
    steps: dict[str, int] = {}
    for role, count in zip(FLEET, result["steps"], strict=True):
        name = f"{role.backend} {role.quant}".strip()
        steps[name] = steps.get(name, 0) + count
    return steps


def show(seed: int, result: dict[str, Any]) -> None:
    """One seed's figures, and its row in docs/real-run.md."""
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
    for seed in range(options.seeds):
        results.append(run_once(options.out / f"seed-{seed}", options.versions, seed))
        show(seed, results[-1])
    if options.json:
        print(json.dumps(results, indent=2))
    sys.exit(0 if all(map(is_won, results)) else 1)


if __name__ == "__main__":
    main()
