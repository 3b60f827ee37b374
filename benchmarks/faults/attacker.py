"""An honest fleet beside an attacker: how much of its speed it keeps.

Devices of the laboratory (processes with the toy backend, paced as if a task took half a second) send updates
through Mosquitto to a coordinator, while windows without and with an attack take turns in the same run, so
that both sides of a ratio have the same fleet. The attacker's own process and the broker's share of the work
are on the same machine. Afterwards the run is audited as every other.

Run as: python -m benchmarks.faults.attacker [--attack KIND …] [--devices 20] [--rate 1000] [--turns 3]
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from benchmarks.faults.attack import KINDS
from benchmarks.faults.audit.audit import audit
from benchmarks.faults.audit.evidence import Finding
from benchmarks.faults.audit.liveness import is_receipted
from benchmarks.faults.fleet import Fleet
from benchmarks.faults.programs import Program
from benchmarks.faults.record import FLEET, LABORATORY, Entry, Recorder, Settings, write_settings
from benchmarks.faults.run import START_S, Progress, until_all
from benchmarks.faults.schedule import Wish
from benchmarks.measuring import Spread, as_json, spread
from converters.errors import TunefleetError

SLOWDOWN = 100.0  # of steps of a few milliseconds
ATTEMPTS = 1_000_000  # a device never waits for a version: its speed is its own
SETTLE_S = 2.0
TARGET = 0.8


class Outcome(Struct, frozen=True):
    """What one kind of attack came to."""

    kind: str
    sent_per_s: float
    without_per_s: Spread  # receipts
    with_per_s: Spread
    kept: Spread  # with over the window before, of each turn


class Report(Struct, frozen=True):
    """What a run came to."""

    devices: int
    outcomes: list[Outcome]
    findings: list[Finding]


async def measure(
    folder: Path, kinds: Sequence[str], devices: int, rate: float, turns: int, window_s: float
) -> Report:
    """Measures every kind in turns, in an empty folder.

    Raises:
        TunefleetError: The laboratory cannot work here.
        TimeoutError: The fleet never got under way.
    """
    names = tuple(f"device-{number}" for number in range(devices))
    small = {"dim": 32, "rank": 4}  # updates of 4 kB: what is measured is messages, not bandwidth
    settings = Settings(Wish(0, 0, 0, 0.0, names), (), slowdown=SLOWDOWN, attempts=ATTEMPTS, **small)
    write_settings(folder, settings)
    recorder, progress, times = Recorder(folder), Progress(), []

    def count(entry: Entry) -> None:
        if is_receipted(entry):
            times.append(entry.at_s)

    recorder.listen(progress.take)
    recorder.listen(count)

    async def speed() -> float:
        begun = recorder.now_s
        await asyncio.sleep(window_s)
        return sum(at_s > begun for at_s in times) / (recorder.now_s - begun)

    outcomes = []
    try:
        async with Fleet(folder, settings, recorder) as fleet:
            await until_all(progress, names, 0.0, START_S)
            recorder.note(LABORATORY, "under-way")
            for kind in kinds:
                found = []
                for _ in range(turns):
                    alone = await speed()
                    async with Attack(fleet, kind, rate, names) as attacker:
                        beside = await speed()
                    found.append((alone, beside, attacker.sent / attacker.took_s))
                    await asyncio.sleep(SETTLE_S)
                outcomes.append(_outcome(kind, found))
                print(_shown(outcomes[-1]), file=sys.stderr, flush=True)
            recorder.note(LABORATORY, "over", cuts=0)
            await until_all(progress, names, recorder.now_s, settings.bound_s, is_required=False)
            recorder.note(LABORATORY, "stopping")
            await fleet.stop()
    finally:
        recorder.close()
    return Report(devices, outcomes, audit(folder).findings)


class Attack:
    """Attacks as long as its block lasts, from when it is ready."""

    def __init__(self, fleet: Fleet, kind: str, rate: float, victims: Sequence[str]) -> None:
        self.sent, self.took_s = 0, 1.0
        self._fleet = fleet
        self._ready = asyncio.Event()
        order = [str(fleet.broker_port), FLEET, kind, str(rate), ",".join(victims)]
        command = [sys.executable, "-m", "benchmarks.faults.attack", *order]
        log = fleet.folder / "logs" / "attack.log"
        self._program = Program("attack", command, log, self._heard, lambda *_: None)

    async def __aenter__(self) -> "Attack":
        await self._program.start()
        async with asyncio.timeout(START_S):
            await self._ready.wait()
        self._began = self._fleet.recorder.now_s
        return self

    async def __aexit__(self, *_: object) -> None:
        self.took_s = self._fleet.recorder.now_s - self._began
        await self._program.stop(10.0)

    def _heard(self, _name: str, line: bytes) -> None:
        if line.strip() == b"ready":
            self._ready.set()
        elif line.strip().isdigit():
            self.sent = int(line)


def _outcome(kind: str, found: Sequence[tuple[float, float, float]]) -> Outcome:
    alone, beside, sent = zip(*found, strict=True)
    kept = [two / one if one else 0.0 for one, two in zip(alone, beside, strict=True)]
    return Outcome(kind, spread(sent).median, spread(alone), spread(beside), spread(kept))


def _shown(one: Outcome) -> str:
    is_met = "met" if one.kept.median >= TARGET else "missed"
    return (
        f"{one.kind:14}{one.sent_per_s:7.0f} messages/s: {one.without_per_s.shown('.1f')} receipts/s "
        f"without, {one.with_per_s.shown('.1f')} with, {one.kept.shown('.0%')} kept: {is_met}"
    )


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attack", nargs="+", choices=KINDS, default=KINDS, metavar="KIND")
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--rate", type=float, default=1000.0, help="messages a second")
    parser.add_argument("--turns", type=int, default=3, help="windows without and with each attack")
    parser.add_argument("--window", type=float, default=10.0, help="seconds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = measure(
            Path(name), options.attack, options.devices, options.rate, options.turns, options.window
        )
        try:
            report = asyncio.run(work)
        except (TunefleetError, TimeoutError) as error:
            sys.exit(f"attacker: {error or 'the fleet never got under way'}")
    if options.json:
        print(as_json(report))
        return
    print(f"{report.devices} devices")
    for outcome in report.outcomes:
        print(_shown(outcome))
    for finding in report.findings:
        print(f"found: {finding.kind}: {finding.who}: {finding.told}")


if __name__ == "__main__":
    main()
