"""Flower's own aggregation, timed in an environment of its own; `benchmarks.speed.merge` starts this.

Its pins of numpy and cryptography do not fit beside ours, so this file imports numpy and Flower alone. The
updates are drawn from a seed, alike on both sides. Three ways, as Flower 1.x has them:

- `arrays`: `aggregate`, a weighted mean of lists of arrays
- `fedavg`: `aggregate_inplace`, what `flwr.server.strategy.FedAvg` calls with replies as they were received
- `records`: `aggregate_arrayrecords`, what `flwr.serverapp.strategy.FedAvg` calls

Run as: <python with flwr> -m benchmarks.speed.flower
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

NUM_UPDATES, NUM_MODULES, WIDTH, RANK = 16, 196, 2048, 8
NUM_TIMED = 5
Arrays = list[NDArray[np.float32]]


def draw_arrays(seed: int, rank: int = RANK) -> Arrays:
    """Draws `a` (rank, WIDTH) and `b` (WIDTH, rank) of every module, in turns."""
    return list(_draw(np.random.default_rng(seed), rank))


def _draw(rng: np.random.Generator, rank: int) -> Iterator[NDArray[np.float32]]:
    for _ in range(NUM_MODULES):
        for shape in ((rank, WIDTH), (WIDTH, rank)):
            yield rng.standard_normal(shape, dtype=np.float32) * np.float32(1e-3)


def time_runs(function: Callable[[], object]) -> float:
    """Returns the median of the seconds of some runs, after one to warm up."""
    function()
    seconds = []
    for _ in range(NUM_TIMED):
        before = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - before)
    return statistics.median(seconds)


def checksum(arrays: Arrays) -> float:
    """Returns a number by which both sides know that they have averaged the same."""
    return float(sum(array.astype(np.float64).sum() for array in arrays))


def main() -> None:
    """Prints seconds by way, and what came out, as JSON."""
    import flwr
    from flwr.common import (
        ArrayRecord,
        Code,
        FitRes,
        MetricRecord,
        RecordDict,
        Status,
        ndarrays_to_parameters,
    )
    from flwr.server.strategy.aggregate import aggregate, aggregate_inplace
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    updates = [draw_arrays(1 + number) for number in range(NUM_UPDATES)]
    weighted = [(arrays, 1) for arrays in updates]
    ok = Status(Code.OK, "")
    replies = [(None, FitRes(ok, ndarrays_to_parameters(arrays), 1, {})) for arrays in updates]
    records = [
        RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1.0})})
        for arrays in updates
    ]
    seconds = {
        "arrays": time_runs(lambda: aggregate(weighted)),
        "fedavg": time_runs(lambda: aggregate_inplace(replies)),
        "records": time_runs(lambda: aggregate_arrayrecords(records, "num-examples")),
    }
    mean = checksum(aggregate(weighted))
    print(json.dumps({"version": flwr.__version__, "seconds": seconds, "checksum": mean}))


if __name__ == "__main__":
    main()
