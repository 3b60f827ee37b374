"""Walks the model of the protocol for a long time, and says how far it came.

A walk is 200 steps at most, and then a kind network; hypothesis draws it from the seed, and shrinks one that
breaks an invariant to the fewest steps.

Run as: python -m benchmarks.faults.model --steps 1000000 [--seed 0]
"""

import argparse
import resource
import sys
import time

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from benchmarks.faults.model.machine import Protocol
from benchmarks.measuring import as_json

STEPS_A_WALK, WALKS = 200, 100


def walk(steps: int, first_seed: int, told: bool) -> dict[str, object]:
    """Walks until so many steps are done, 100 walks a seed, and returns what it took.

    Raises:
        AssertionError: What must hold did not, after the steps that hypothesis prints.
    """
    began, number = time.monotonic(), first_seed
    walks = settings(
        max_examples=WALKS, stateful_step_count=STEPS_A_WALK, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    while Protocol.num_steps < steps:
        run_state_machine_as_test(seed(number)(Protocol), settings=walks)
        number += 1
        if told:
            print(f"{Protocol.num_steps:,} steps", file=sys.stderr, flush=True)
    return {
        "seeds": [first_seed, number - 1],
        "steps": Protocol.num_steps,
        "seconds": round(time.monotonic() - began, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Walks as far as is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first walks")
    parser.add_argument("--quiet", action="store_true", help="without progress")
    options = parser.parse_args()
    print(as_json(walk(options.steps, options.seed, not options.quiet)))


if __name__ == "__main__":
    main()
