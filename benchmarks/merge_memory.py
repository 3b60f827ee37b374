"""Does the coordinator's memory grow with the number of updates it merges?

FedBuff in space `factors` merges 4, 16 and 64 updates of 25 MB (rank 8 on 196 modules of 2048 x 2048, in
float32) from files, as the coordinator keeps them; each count in a fresh process, whose peak resident size is
reported.

Run as: python -m benchmarks.merge_memory [--repeats 3] [--json]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COUNTS = (4, 16, 64)
NUM_MODULES, WIDTH, RANK = 196, 2048, 8
MAX_RATIO = 1.1  # of peaks; the interpreter's own varies by a few MB
MB = 1e6


def write_fleet(folder: Path) -> int:
    """A master and the largest buffer of updates; returns an update's size in bytes."""
    from converters.adapter import initial_adapter
    from converters.canonical import save_adapter
    from edge.protocol.codec import encode_adapter

    modules = {f"model.layers.{n}.q_proj": (WIDTH, WIDTH) for n in range(NUM_MODULES)}
    master = initial_adapter(modules, rank=RANK, scale=2.0, seed=0)
    save_adapter(master, folder / "master")
    payload = encode_adapter(initial_adapter(modules, rank=RANK, scale=2.0, seed=1), "f32")
    (folder / "0").write_bytes(payload)
    for number in range(1, max(COUNTS)):
        os.link(folder / "0", folder / str(number))  # 1.6 GB of distinct files would measure the disk
    return len(payload)


def merge(folder: Path, count: int) -> dict[str, float]:
    """Merges `count` updates in this process; its peak and how long it took."""
    from converters.canonical import load_adapter
    from coordinator.strategies.base import Contribution, State
    from coordinator.strategies.fedbuff import FedBuff
    from edge.protocol.codec import decode_adapter

    master = load_adapter(folder / "master")
    buffer = [
        Contribution(
            update=str(number),
            device=f"device-{number}",
            base_version=0,
            staleness=number % 3,
            num_examples=1,
            load_delta=lambda path=folder / str(number): decode_adapter(path.read_bytes(), like=master),
            load_base=lambda: master,
        )
        for number in range(count)
    ]
    before = time.perf_counter()
    FedBuff(buffer_size=count, space="factors").merge(State(0, master), buffer)
    seconds = time.perf_counter() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_bytes": peak * (1 if sys.platform == "darwin" else 1024), "seconds": seconds}


def measure(folder: Path, count: int, repeats: int) -> dict[str, Any]:
    """`merge` in fresh processes."""
    command = [sys.executable, "-m", "benchmarks.merge_memory", "--child", str(folder), str(count)]
    runs = [json.loads(subprocess.check_output(command)) for _ in range(repeats)]
    return {
        "updates": count,
        "peak_mb": statistics.median(run["peak_bytes"] for run in runs) / MB,
        "peak_mb_all": [run["peak_bytes"] / MB for run in runs],
        "seconds": statistics.median(run["seconds"] for run in runs),
    }


def main() -> int:
    """Runs all counts; exit status 1 where memory grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(merge(Path(arguments.child[0]), int(arguments.child[1]))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        size = write_fleet(Path(folder))
        rows = [measure(Path(folder), count, arguments.repeats) for count in COUNTS]
    ratio = rows[-1]["peak_mb"] / rows[0]["peak_mb"]
    if arguments.json:
        print(json.dumps({"update_mb": size / MB, "rows": rows, "peak_ratio": ratio}))
    else:
        print(f"updates of {size / MB:.1f} MB, space factors, median of {arguments.repeats}")
        for row in rows:
            rate = row["updates"] * size / row["seconds"] / 1e9
            took = f"{row['seconds']:6.2f} s, {rate:.2f} GB/s"
            print(f"{row['updates']:4} updates: peak {row['peak_mb']:6.0f} MB, {took}")
        print(f"peak of {COUNTS[-1]} over peak of {COUNTS[0]}: {ratio:.3f} (at most {MAX_RATIO})")
    return int(ratio > MAX_RATIO)


if __name__ == "__main__":
    sys.exit(main())
