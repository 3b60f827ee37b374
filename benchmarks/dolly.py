"""The real run: ten devices fine-tune on Dolly's ten clients over Mosquitto, and everything is killed once.

Mosquitto runs with persistence on; `tunefleet serve` and ten `tunefleet join` are real processes. A third of
the way in, the broker is killed and started again; at two thirds the coordinator is killed with SIGKILL and
started again. In the end every update that a device spooled must stand in the journal exactly once, or still
lie in its spool; the fleet's adapter is compared with the base and with each device trained alone for as many
steps.

Run as: python -m benchmarks.dolly [--versions 32] [--seeds 3] [--out runs/dolly] [--json]
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
from typing import Any, TextIO

ASSETS = Path(os.environ.get("TUNEFLEET_ASSETS", "../shared/assets"))
DEVICES = 10
SLOWDOWN = (1, 1, 1, 1, 2, 2, 3, 4, 6, 8)  # the tenth device takes eight times as long for a step
MLX_DEVICES = (2, 5, 8)
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
    """Writes the ten devices' data and the global test rows."""
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    source = ASSETS / "data/dolly15k"
    for index in range(DEVICES):
        write_rows(json.loads((source / f"local_training_{index}.json").read_text()), data / f"{index}.jsonl")
    write_rows(json.loads((source / "global_test.json").read_text()), data / "test.jsonl")
    return data


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
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)


def report(*arguments: str) -> Any:
    """The command's `--json` report."""
    command = [sys.executable, "-m", "tunefleet", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    return json.loads(done.stdout)


def backend_of(index: int) -> str:
    """MLX on three devices, torch on the others."""
    return "mlx" if index in MLX_DEVICES else "torch"


@contextmanager
def fleet(
    out: Path, data: Path, base: Path, url: str, logs: list[TextIO]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Ten devices, ended by SIGTERM."""
    devices = [
        tunefleet(
            *(
                "join",
                "--broker",
                url,
                "--fleet",
                "dolly",
                "--base",
                str(base),
                "--data",
                str(data / f"{index}.jsonl"),
            ),
            *("--device-id", f"device-{index}", "--state", str(out / f"device-{index}"), "--json"),
            *("--backend", backend_of(index), "--slowdown", str(SLOWDOWN[index])),
            log=logs[index],
        )
        for index in range(DEVICES)
    ]
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


def run_fleet(out: Path, data: Path, base: Path, versions: int, seed: int) -> dict[str, Any]:
    """The fleet's run with both accidents; returns what they were and when."""
    port = free_port()
    url, state = f"mqtt://127.0.0.1:{port}", out / "coordinator"
    serve = ["serve", "--broker", url, "--fleet", "dolly", "--base", str(base), "--state", str(state)]
    serve += [
        "--rank",
        "8",
        "--buffer-size",
        "4",
        "--steps",
        str(STEPS),
        *TRAINING,
        "--seed",
        str(seed),
        "--wait",
    ]
    broker = start_broker(out / "broker", port)
    started_s = time.monotonic()
    accidents = []
    with (out / "coordinator.log").open("a") as log:
        coordinator = tunefleet(*serve, log=log)
        logs = [(out / f"device-{index}.log").open("a") for index in range(DEVICES)]
        try:
            with fleet(out, data, base, url, logs):
                wait_for(state, versions // 3, coordinator, started_s)
                broker.kill()
                broker.wait()
                accidents.append({"what": "broker killed", "at_s": time.monotonic() - started_s})
                time.sleep(3)
                broker = start_broker(out / "broker", port)
                wait_for(state, 2 * versions // 3, coordinator, started_s)
                coordinator.kill()
                coordinator.wait()
                accidents.append({"what": "coordinator killed", "at_s": time.monotonic() - started_s})
                time.sleep(3)
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
    spooled = [update for index in range(DEVICES) for update in spooled_updates(out, index)]
    waiting = {entry.name for index in range(DEVICES) for entry in (out / f"device-{index}/spool").iterdir()}
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
    return [STEPS * counts.get(f"device-{index}", 0) for index in range(DEVICES)]


def train_alone(out: Path, data: Path, base: Path, index: int, steps: int, seed: int) -> float:
    """Loss on the global test rows of a device that trained by itself, on its own data."""
    adapter = out / f"alone-{index}"
    with (out / f"alone-{index}.log").open("w") as log:
        command = [
            "train",
            "--base",
            str(base),
            "--data",
            str(data / f"{index}.jsonl"),
            "--out",
            str(adapter),
        ]
        command += [
            "--backend",
            "torch",
            "--rank",
            "8",
            "--steps",
            str(steps),
            *TRAINING,
            "--seed",
            str(seed),
        ]
        if tunefleet(*command, log=log).wait():
            raise SystemExit(f"training alone failed: see {log.name}")
    return test_loss(data, base, adapter)


def test_loss(data: Path, base: Path, adapter: Path | None) -> float:
    """Loss on the 80 global test rows, by the torch backend."""
    chosen = ["--adapter", str(adapter)] if adapter else []
    command = ["eval", "--base", str(base), "--data", str(data / "test.jsonl"), "--backend", "torch", *chosen]
    return float(report(*command)["loss"])


def run_once(out: Path, versions: int, seed: int) -> dict[str, Any]:
    """One seed: the fleet with its accidents, then everybody alone."""
    shutil.rmtree(out, ignore_errors=True)
    data = prepare(out)
    base = ASSETS / "models/stories260K"
    result = run_fleet(out, data, base, versions, seed)
    result["audit"] = audit(out)
    result["versions"] = current_version(out / "coordinator")
    report("export", "--state", str(out / "coordinator"), "--out", str(out / "fleet"), "--to", "peft")
    result["steps"] = steps_of(out)
    with ThreadPoolExecutor(max_workers=2) as pool:
        alone = pool.map(
            lambda index: train_alone(out, data, base, index, max(result["steps"][index], STEPS), seed),
            range(DEVICES),
        )
        result["loss"] = {"base": test_loss(data, base, None), "fleet": test_loss(data, base, out / "fleet")}
        result["loss"]["alone"] = list(alone)
    result["loss"]["alone_median"] = statistics.median(result["loss"]["alone"])
    return result


def is_won(result: dict[str, Any]) -> bool:
    """What the run has to show."""
    loss, counts = result["loss"], result["audit"]
    is_better = loss["fleet"] < loss["base"] and loss["fleet"] < loss["alone_median"]
    return is_better and counts["lost"] == 0 and counts["journalled_twice"] == 0


def show(result: dict[str, Any]) -> None:
    """One seed's figures, as docs/real-run.md has them."""
    loss, counts = result["loss"], result["audit"]
    print(f"versions {result['versions']}, {result['seconds']:.0f} s, {sum(result['steps'])} steps merged")
    for accident in result["accidents"]:
        print(f"  {accident['what']} at {accident['at_s']:.0f} s")
    print("  updates: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    print("  test loss: " + ", ".join(f"{who} {loss[who]:.4f}" for who in ("base", "fleet", "alone_median")))
    print("  alone: " + " ".join(f"{value:.4f}" for value in loss["alone"]))


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
        show(results[-1])
    if options.json:
        print(json.dumps(results, indent=2))
    sys.exit(0 if all(map(is_won, results)) else 1)


if __name__ == "__main__":
    main()
