"""Kills, cuts, stops and starves a fleet of real processes, and audits what is left of it.

A coordinator, devices with the toy backend and Mosquitto, each client behind a link of its own, while a
schedule drawn from the seed is done to them. Long campaigns go in pieces, each with the next seed and a fleet
of its own. What the audit finds is an exit status of 1, and the run's folder is kept.

Run as: python -m benchmarks.faults --seed 0 --kills 1000 [--minutes 40] [--pieces 10] [--save FILE]
        python -m benchmarks.faults --cuts 500 --cut-bytes 2000 200000     connections cut at random bytes
        python -m benchmarks.faults --audit FOLDER                         of a run that was kept
        python -m benchmarks.faults --add FILE … [--plot FILE]             of saved reports together
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec

from benchmarks.faults.audit.audit import Report, audit
from benchmarks.faults.record import Limits, Settings
from benchmarks.faults.report import plot, table
from benchmarks.faults.run import run
from benchmarks.faults.schedule import Wish, draw
from benchmarks.measuring import as_json
from converters.errors import TunefleetError

SECONDS_A_KILL = 2.5  # a device that dies takes a second or two of processor to come again


def main() -> None:
    """Runs, or audits, what is asked for."""
    options = _options()
    try:
        reports = _reports(options)
    except (TunefleetError, TimeoutError) as error:
        sys.exit(f"faults: {error or 'the fleet never got under way'}")
    if options.save:
        options.save.write_bytes(msgspec.json.encode(reports))
    if options.plot:
        plot(reports, options.plot)
    print(as_json(reports) if options.json else table(reports))
    if not all(report.is_sound for report in reports):
        sys.exit(1)


def _reports(options: argparse.Namespace) -> list[Report]:
    if options.audit:
        return [audit(options.audit)]
    if options.add:
        found = (msgspec.json.decode(path.read_bytes(), type=list[Report]) for path in options.add)
        return [report for reports in found for report in reports]
    return [_piece(options, number) for number in range(options.pieces)]


def _piece(options: argparse.Namespace, number: int) -> Report:
    """Does one run in a folder of its own, and audits it."""
    settings = _settings(options, number)
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=options.folder))

    def tell(text: str) -> None:
        print(f"seed {settings.wish.seed}: {text}", file=sys.stderr, flush=True)

    asyncio.run(run(folder, settings, tell))
    report = audit(folder)
    if report.is_sound and not options.keep:
        shutil.rmtree(folder)
    else:
        tell(f"kept in {folder}")
    return report


def _settings(options: argparse.Namespace, number: int) -> Settings:
    seed, kills = options.seed + number, options.kills // options.pieces
    minutes = options.minutes / options.pieces if options.minutes else kills * SECONDS_A_KILL / 60
    others = kills // 2 if options.others is None else options.others // options.pieces
    devices = tuple(f"device-{index}" for index in range(options.devices))
    wish = Wish(seed, kills, others, 60 * minutes, devices, loses_persistence=not options.persistence)
    return Settings(
        wish=wish,
        faults=draw(wish),
        limits=_small(seed) if options.small_broker else Limits(),
        cut_bytes=tuple(options.cut_bytes) if options.cuts else (0, 0),
        cuts=options.cuts // options.pieces,
        bound_s=options.bound,
        dim=options.dim or (64, 128)[seed % 2],
    )


def _small(seed: int) -> Limits:
    """Draws a broker that takes little of everything; a laboratory's largest message has 68 kB."""
    generator = random.Random(seed)
    return Limits(
        persistence=generator.random() < 0.5,
        max_inflight_messages=generator.choice((1, 2, 5, 20)),
        max_queued_messages=generator.choice((5, 20, 100)),
        message_size_limit=generator.choice((70_000, 100_000, 1_000_000)),
        memory_limit=generator.choice((0, 16_000_000)),
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first piece")
    parser.add_argument("--kills", type=int, default=0, help="processes that are killed, over all pieces")
    parser.add_argument("--others", type=int, help="other faults; half as many as kills by default")
    parser.add_argument("--minutes", type=float, default=0.0, help=f"for all; else {SECONDS_A_KILL} s a kill")
    parser.add_argument("--pieces", type=int, default=1, help="runs, each with the next seed")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--dim", type=int, default=0, help="of the toy base; 64 or 128, by the seed")
    parser.add_argument(
        "--cuts", type=int, default=0, help="connections of devices that are cut at random bytes"
    )
    parser.add_argument("--cut-bytes", type=int, nargs=2, default=(2_000, 200_000), metavar=("LOW", "HIGH"))
    parser.add_argument(
        "--small-broker", action="store_true", help="limits of the broker drawn from the seed"
    )
    parser.add_argument("--persistence", action="store_true", help="the broker never loses what it keeps")
    parser.add_argument("--bound", type=float, default=60.0, help="seconds to go on after the last fault")
    parser.add_argument(
        "--folder", type=Path, help="where runs lie; the system's for temporary files by default"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folders of sound runs, too")
    parser.add_argument("--audit", type=Path, metavar="FOLDER", help="audit a run that was kept")
    parser.add_argument("--add", type=Path, nargs="+", metavar="FILE", help="add saved reports up")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the reports as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the time to go on")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    for name in ("devices", "pieces"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}, expected at least 1")
    return options


if __name__ == "__main__":
    main()
