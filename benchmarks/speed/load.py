"""A fleet in a closed loop: how many receipts a second a coordinator gives, before a change and after it.

Doubles of devices (`benchmarks.speed.doubles`) send updates of 4.5 kB through a real Mosquitto to a real
`tunefleet serve`; each sends its next when the last has its verdict. `--before` names another checkout,
whose coordinator and whose doubles run with that checkout's own packages and wire; the two take turns on the
same machine (A B A B …), each with a broker and a state folder of its own. Afterwards every receipt is held
against the journal: an update that was receipted and is not there is lost; twice it cannot be there, for its
id is unique.

Run as: python -m benchmarks.speed.load [--before CHECKOUT] [--devices 300] [--seconds 20] [--turns 3]
"""

import argparse
import asyncio
import itertools
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from benchmarks.measuring import Spread, as_json, spread
from benchmarks.mosquitto import running_mosquitto
from benchmarks.speed.doubles.fleet import Report, Settings
from converters.adapter import Factors, LoraAdapter
from converters.errors import TunefleetError
from coordinator.demo.processes import Children
from edge.backends.toy import LAYER, make_toy_base
from edge.protocol.chunks import CHUNK_BYTES
from edge.protocol.codec import encode_adapter

HERE = Path(__file__).parents[2]
FLEET = "loaded"
DIM, RANK = 64, 8  # q and v in f16: 4.5 kB
SAMPLE_S = 1.0
GRACE_S = 90.0


class Load(NamedTuple):
    """What both sides are put to."""

    devices: int
    processes: int  # of doubles
    warmup_s: float
    seconds: float
    buffer: int | None  # updates of a version; None: as a fleet has it by default
    space: str | None  # in which versions are merged; None: the strategy's own
    fsync_ms: float  # by which each of the coordinator's takes longer than this machine's disk


class Sample(NamedTuple):
    """A look at the coordinator's process."""

    at: float  # seconds of any beginning
    cpu_s: float
    resident_mb: float


class Outcome(Struct, frozen=True):
    """What one turn of one side came to."""

    receipts_per_s: float
    p50_s: float
    p99_s: float
    worst_s: float
    verdicts: dict[str, int]
    updates: int
    headers: int
    chunks: int
    unanswered: int
    broken: int  # connections
    lost: int  # receipted as accepted, and not in the journal
    versions: int
    cpu_ms: float  # of the coordinator's, for each receipt
    memory_mb: tuple[float, ...]  # resident, in tenths of the time


def make_payload() -> bytes:
    """Draws a delta of 4.5 kB for the toy base's q and v."""
    random = np.random.default_rng(0)
    modules = {}
    for letter in "qv":
        a, b = (0.01 * random.standard_normal(shape) for shape in ((RANK, DIM), (DIM, RANK)))
        modules[f"{LAYER}{letter}_proj"] = Factors(a.astype(np.float32), b.astype(np.float32), 2.0)
    return encode_adapter(LoraAdapter(modules), "f16")


def overlay(checkout: Path, folder: Path) -> Path:
    """Makes a folder of links: a checkout's packages beside these benchmarks."""
    folder.mkdir()
    for name in ("converters", "edge", "coordinator", "tunefleet.py"):
        (folder / name).symlink_to(checkout / name)
    (folder / "benchmarks").symlink_to(HERE / "benchmarks")
    return folder


async def run_once(checkout: Path, folder: Path, load: Load) -> Outcome:
    """Runs one side once, in a folder of its own.

    Raises:
        TunefleetError: Mosquitto is missing, or a process ended.
    """
    packages = overlay(checkout, folder / "packages")
    base = make_toy_base(folder / "base", dim=DIM)
    (folder / "payload").write_bytes(make_payload())
    python = ("env", f"PYTHONPATH={packages}", sys.executable, "-P", "-W", "ignore", "-m")
    slow = ("env", *_slow_disk(folder, load.fsync_ms), *python[1:])
    async with (
        running_mosquitto(folder / "broker") as broker,
        Children(folder / "logs", 1, python, grace_s=30.0) as children,
        Children(folder / "logs", 1, slow, grace_s=30.0) as centre,
    ):
        options = {"fleet": FLEET, "broker": broker.url, "base": base, "state": folder / "state"}
        options |= {"rank": RANK, "attempts": 0, "buffer-size": load.buffer, "space": load.space}
        given = [
            text for name, value in options.items() if value is not None for text in (f"--{name}", value)
        ]
        await centre.start("coordinator", ["tunefleet", "serve", *map(str, given)])
        names = []
        for number, settings in enumerate(_settings(folder, broker.port, load)):
            names.append(f"doubles-{number}")
            line = msgspec.json.encode(settings).decode()
            await children.start(names[-1], ["benchmarks.speed.doubles.fleet", line])
        samples: list[Sample] = []
        pid, until = centre.pid("coordinator"), time.monotonic() + load.warmup_s + load.seconds
        watching = asyncio.create_task(_watch(pid, until, samples))
        try:
            reports = [msgspec.json.decode(await children.finish(name), type=Report) for name in names]
            centre.check("coordinator")
        finally:
            watching.cancel()
        await centre.stop("coordinator")
    return _outcome(reports, samples, folder, load)


def _slow_disk(folder: Path, fsync_ms: float) -> list[str]:
    """Returns what a process is started with so that its disk takes longer."""
    if not fsync_ms:
        return []
    source, library = Path(__file__).with_name("doubles") / "slow_disk.c", folder / "slow_disk.so"
    done = subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], capture_output=True)
    if done.returncode:
        raise TunefleetError(f"{source} does not compile, it takes Linux and gcc: {done.stderr.decode()}")
    return [f"LD_PRELOAD={library.resolve()}", f"FSYNC_US={round(1000 * fsync_ms)}"]


def _settings(folder: Path, port: int, load: Load) -> Iterator[Settings]:
    bounds = [load.devices * number // load.processes for number in range(load.processes + 1)]
    for number, (first, end) in enumerate(itertools.pairwise(bounds)):
        yield Settings(
            port=port, fleet=FLEET, first=first, count=end - first, payload=str(folder / "payload"),
            chunk_bytes=CHUNK_BYTES, warmup_s=load.warmup_s, seconds=load.seconds, grace_s=GRACE_S,
            accepted=str(folder / f"accepted-{number}"),
        )  # fmt: skip


async def _watch(pid: int, until: float, samples: list[Sample]) -> None:
    """Looks at a process once a second, while it is under load; only Linux tells."""
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    stat, statm = Path(f"/proc/{pid}/stat"), Path(f"/proc/{pid}/statm")
    while stat.exists() and time.monotonic() < until:
        fields = stat.read_text().rpartition(")")[2].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / ticks
        samples.append(Sample(time.monotonic(), cpu_s, int(statm.read_text().split()[1]) * page / 1e6))
        await asyncio.sleep(SAMPLE_S)


def _outcome(reports: list[Report], samples: list[Sample], folder: Path, load: Load) -> Outcome:
    latencies = sorted(one for report in reports for one in report.latencies)
    if not latencies:
        raise TunefleetError(f"no receipt in {load.seconds:g} s; the logs are in {folder / 'logs'}")
    accepted = {line for path in folder.glob("accepted-*") for line in path.read_text().split()}
    with closing(sqlite3.connect(f"file:{folder / 'state' / 'journal.sqlite'}?mode=ro", uri=True)) as journal:
        known = {update for (update,) in journal.execute("SELECT id FROM updates WHERE status != 'rejected'")}
        versions = journal.execute("SELECT max(version) FROM versions").fetchone()[0]
    verdicts = sum((Counter(report.verdicts) for report in reports), Counter[str]())
    steps = [samples[len(samples) * tenth // 10].resident_mb for tenth in range(10)] if samples else []
    return Outcome(
        receipts_per_s=len(latencies) / load.seconds,
        p50_s=statistics.median(latencies),
        p99_s=latencies[int(0.99 * len(latencies))],
        worst_s=latencies[-1],
        verdicts=dict(verdicts),
        updates=sum(report.updates for report in reports),
        headers=sum(report.headers for report in reports),
        chunks=sum(report.chunks for report in reports),
        unanswered=sum(report.unanswered for report in reports),
        broken=sum(report.lost for report in reports),
        lost=len(accepted - known),
        versions=versions,
        cpu_ms=_cpu_ms(samples, len(latencies), load),
        memory_mb=(*steps, samples[-1].resident_mb) if samples else (),
    )


def _cpu_ms(samples: list[Sample], num_receipts: int, load: Load) -> float:
    """Returns the time of a processor that each receipt of the measured time took."""
    measured = [one for one in samples if one.at >= samples[-1].at - load.seconds]
    if len(measured) < 2:
        return float("nan")
    first, last = measured[0], measured[-1]
    share = (last.cpu_s - first.cpu_s) / (last.at - first.at)
    return 1000 * share * load.seconds / num_receipts


async def measure(sides: dict[str, Path], load: Load, turns: int, folder: Path) -> dict[str, list[Outcome]]:
    """Measures all sides in turn."""
    outcomes: dict[str, list[Outcome]] = {side: [] for side in sides}
    for turn in range(turns):
        for side, checkout in sides.items():
            own = folder / f"{side}-{turn}"
            own.mkdir()
            outcomes[side].append(await run_once(checkout, own, load))
            print(f"{side} {turn + 1}: {shown(outcomes[side][-1])}", file=sys.stderr)
    return outcomes


def shown(one: Outcome) -> str:
    """Returns an outcome as a line."""
    return (
        f"{one.receipts_per_s:.1f} receipts/s, p50 {one.p50_s:.2f} s, p99 {one.p99_s:.2f} s, worst "
        f"{one.worst_s:.2f} s; {one.verdicts}; {one.headers} headers, {one.chunks} chunks, "
        f"{one.updates} updates; unanswered {one.unanswered}, lost {one.lost}, broken {one.broken}; "
        f"{one.versions} versions; "
        f"{one.cpu_ms:.2f} ms of a core for each; {', '.join(f'{mb:.0f}' for mb in one.memory_mb)} MB"
    )


def summary(outcomes: dict[str, list[Outcome]]) -> dict[str, object]:
    """Returns medians and spreads, and the ratio of receipts within each turn."""
    names = ("receipts_per_s", "p50_s", "p99_s", "worst_s", "cpu_ms")
    report: dict[str, object] = {
        f"{side} {name}": spread([getattr(one, name) for one in turns])
        for side, turns in outcomes.items()
        for name in names
    }
    report |= {f"{side} lost": sum(one.lost for one in turns) for side, turns in outcomes.items()}
    if "before" in outcomes:
        pairs = zip(outcomes["before"], outcomes["after"], strict=True)
        report["ratio of receipts"] = spread([new.receipts_per_s / old.receipts_per_s for old, new in pairs])
    return report


def main() -> None:
    """Measures what is asked for, and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--devices", type=int, default=300)
    parser.add_argument("--processes", type=int, default=1, help="of doubles")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds that are not counted")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--buffer", type=int, help="updates of a version; by default as the fleet has it")
    parser.add_argument("--space", help="factors: merges take next to nothing; by default the strategy's own")
    parser.add_argument(
        "--fsync-ms", type=float, default=0.0, help="that the coordinator's disk takes longer"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="new; keeps states and logs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    load = Load(
        options.devices, options.processes, options.warmup, options.seconds, options.buffer, options.space,
        options.fsync_ms,
    )  # fmt: skip
    sides = ({"before": options.before.resolve()} if options.before else {}) | {"after": HERE}
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = options.folder or Path(name)
            folder.mkdir(parents=True, exist_ok=True)
            outcomes = asyncio.run(measure(sides, load, options.turns, folder))
    except TunefleetError as error:
        sys.exit(f"load: {error}")
    report = summary(outcomes)
    if options.json:
        print(as_json(report | {"turns": outcomes}))
        return
    for key, value in report.items():
        print(f"{key:24} {value.shown() if isinstance(value, Spread) else value}")


if __name__ == "__main__":
    main()
