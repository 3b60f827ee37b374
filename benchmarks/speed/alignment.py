"""How long the alignment of old updates takes on a model of 124 million parameters.

Sixteen updates of four versions, so three groups to be fitted; LoRA of rank 8 on q and v of a random LLaMA
(`benchmarks.models`); a calibration set of examples of 64 tokens, of which the coordinator's own probe takes
its part. Timed is the stage alone, with the model loaded: its passes over the probe and its algebra. How
good the fit is, a random model cannot tell.

Run as: python -m benchmarks.speed.alignment [--json]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import timed
from benchmarks.models import SHAPES, find_model
from converters.adapter import LoraAdapter, initial_adapter
from converters.arithmetic import add, map_entries
from converters.bases.targets import match_targets
from coordinator.calibration import Calibration
from coordinator.strategies.contract import Contribution, State
from coordinator.strategies.pipeline_state import PipelineState, begin
from coordinator.strategies.stages.align import Align

TARGETS, RANK, SCALE = ("q_proj", "v_proj"), 8, 2.0
NUM_UPDATES, NUM_VERSIONS = 16, 4
NUM_TOKENS = 64  # of an example
BOUND_S = 10.0


def write_examples(path: Path, count: int) -> None:
    """Writes random letters, a token each; the sequence's beginning is the first of an example's tokens."""
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, (count, NUM_TOKENS - 1), np.uint8)
    path.write_text("".join(json.dumps({"text": bytes(row).decode()}) + "\n" for row in letters))


def random_adapter(like: LoraAdapter, seed: int, size: float) -> LoraAdapter:
    """Draws entries of about `size`, in the shapes of `like`."""
    random = np.random.default_rng(seed)
    return map_entries(
        lambda entries: np.float32(size) * random.standard_normal(entries.shape, np.float32), like
    )


def draw_update(number: int, versions: list[LoraAdapter]) -> Contribution:
    """Draws an update on one of the versions, in turns; the last version is the present one."""
    version = number % NUM_VERSIONS
    delta = random_adapter(versions[version], 100 + number, 2e-3)
    return Contribution(
        update=str(number),
        device=f"device-{number}",
        base_version=version,
        staleness=NUM_VERSIONS - 1 - version,
        num_examples=1,
        load_delta=lambda: delta,
        load_base=lambda: versions[version],
    )


def measure(name: str, folder: Path, repeats: int, num_examples: int) -> dict[str, Any]:
    """Measures the seconds of each repeat, by the clock and of the processors."""
    write_examples(folder / "calibration.jsonl", num_examples)
    calibration = Calibration(
        find_model(name, "", folder), folder / "calibration.jsonl", seq_tokens=256, batch_tokens=1024
    )
    model, _ = calibration.load()
    modules = match_targets(model.card.modules, TARGETS)
    versions = [initial_adapter(modules, rank=RANK, scale=SCALE, seed=0)]
    for number in range(1, NUM_VERSIONS):
        versions.append(add(versions[-1], random_adapter(versions[-1], number, 2e-3)))
    num_probed = len(calibration.features(versions[-1]))
    buffer = [draw_update(number, versions) for number in range(NUM_UPDATES)]
    state, align = State(NUM_VERSIONS - 1, versions[-1]), Align()
    pipeline = PipelineState(state, begin(buffer), calibrator=calibration)
    turns = [timed(lambda: align(pipeline)) for _ in range(repeats)]
    aligned = turns[-1][0]
    seconds = [took.seconds for _, took in turns]
    return {
        "model": name,
        "parameters": model.card.num_parameters,
        "updates": NUM_UPDATES,
        "versions": NUM_VERSIONS,
        "examples": num_examples,
        "probed_tokens": num_probed * NUM_TOKENS,
        "align_steps": align.steps,
        "aligned": sum(item.load_delta is not item.source.load_delta for item in aligned.items),
        "seconds": statistics.median(seconds),
        "seconds_all": seconds,
        "cpu_seconds": statistics.median(took.cpu_seconds for _, took in turns),
        "load_average": os.getloadavg()[0],
    }


def main() -> int:
    """Runs all repeats; exit status 1 where the median is over the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="LLaMA-124M")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.model, Path(folder), arguments.repeats, arguments.examples)
    if arguments.json:
        print(json.dumps(found))
    else:
        low, high = min(found["seconds_all"]), max(found["seconds_all"])
        print(
            f"{found['updates']} updates of {found['versions']} versions, {found['parameters'] / 1e6:.1f} M "
            f"parameters, features of {found['probed_tokens']} tokens, {found['align_steps']} steps:\n"
            f"{found['seconds']:.1f} s ({low:.1f} to {high:.1f}), {found['cpu_seconds']:.1f} s of processor "
            f"time, median of {arguments.repeats}; at most {BOUND_S:.0f} s; load {found['load_average']:.1f}"
        )
    return int(found["seconds"] > BOUND_S)


if __name__ == "__main__":
    sys.exit(main())
