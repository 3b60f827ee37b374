"""What one backend takes for its steps, in a process that does nothing else: seconds and resident memory.

The backend is loaded and stepped as the product does it: by `load_model`, through the contract. LoRA of rank
8 on all seven projections; one example of random tokens a step.

Run as: python -m benchmarks.speed.steps measure|flat|profile WORK, by `backends.py`
"""

import cProfile
import pstats
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.measuring import timed
from benchmarks.memory import memory_bytes
from converters.adapter import initial_adapter
from converters.bases.targets import match_targets
from coordinator.demo.plan import TARGETS
from edge.backends import load_model
from edge.backends.contract import Batch, Precision, TrainableModel

RANK, SCALE, LR, CLIP_NORM = 8, 2.0, 1e-3, 1.0
WARM_STEPS = 1  # buffers are allocated, graphs are read; the median passes over what else is slow at first
FLAT_REPORTS = 20
SHORTEST_FLAT, MOST_EXAMPLES = 2, 8  # tokens of an example, examples of a row


class Work(msgspec.Struct, frozen=True):
    """What is measured."""

    base: str
    backend: str
    precision: Precision
    num_tokens: int  # of a step
    labelled: float  # share of the tokens, at the end, that are trained on
    num_steps: int  # timed
    seed: int = 0  # of the tokens


class Measurement(msgspec.Struct, frozen=True):
    """One process's figures."""

    tokens_per_s: float  # by the median step
    tokens_per_cpu_s: float  # processor seconds of all threads
    loaded_bytes: int  # peak of resident memory until the first step
    peak_bytes: int  # and in all
    losses: list[float]  # of all steps


class Watched(msgspec.Struct, frozen=True):
    """One process's memory on the way."""

    held: list[tuple[int, int]]  # steps done, resident bytes
    peak_bytes: int


def measure(work: Work) -> Measurement:
    """Times the steps."""
    model = load(work)
    loaded_bytes = memory_bytes(peak=True)
    steps = [timed(model.step, [batch], LR) for batch in draw_batches(work, model.card.vocab_size)]
    losses, took = zip(*steps, strict=True)
    medians = map(statistics.median, zip(*took[WARM_STEPS:], strict=True))
    speed, cpu_speed = (work.num_tokens / seconds for seconds in medians)
    return Measurement(speed, cpu_speed, loaded_bytes, memory_bytes(peak=True), list(losses))


def watch(work: Work) -> Watched:
    """Watches memory on the way; rows and examples are of all lengths, as a leak may hang on a shape."""
    model = load(work)
    random = np.random.default_rng(work.seed)
    held = []
    for step in range(1, work.num_steps + 1):
        model.step([draw_row(random, model.card.vocab_size, work)], LR)
        if step % max(work.num_steps // FLAT_REPORTS, 1) == 0:
            held.append((step, memory_bytes(peak=False)))
    return Watched(held, memory_bytes(peak=True))


def profile(work: Work) -> None:
    """Prints where the time of the steps goes."""
    model = load(work)
    warm, *batches = draw_batches(work, model.card.vocab_size)
    model.step([warm], LR)
    profiler = cProfile.Profile()
    with profiler:
        for batch in batches:
            model.step([batch], LR)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


def load(work: Work) -> TrainableModel:
    """Loads the model with a fresh adapter, ready to be trained."""
    model = load_model(work.backend, Path(work.base), precision=work.precision)
    modules = match_targets(model.card.modules, TARGETS)
    model.set_adapter(initial_adapter(modules, rank=RANK, scale=SCALE, seed=0))
    model.begin(weight_decay=0.0, clip_norm=CLIP_NORM)
    return model


def draw_batches(work: Work, vocab_size: int) -> Iterator[Batch]:
    """Draws the batches of all steps, the same for every backend."""
    random = np.random.default_rng(0)
    for _ in range(WARM_STEPS + work.num_steps):
        yield draw_batch(random, vocab_size, work.num_tokens, work.labelled)


def draw_batch(random: np.random.Generator, vocab_size: int, num_tokens: int, labelled: float) -> Batch:
    """Draws one example of random tokens, its last part labelled as a completion is."""
    tokens = random.integers(0, vocab_size, num_tokens + 1, np.int32)
    return Batch(
        tokens=tokens[:-1],
        targets=tokens[1:],
        weights=(np.arange(num_tokens) >= round(num_tokens * (1 - labelled))).astype(np.float32),
        lengths=np.array([num_tokens]),
    )


def draw_row(random: np.random.Generator, vocab_size: int, work: Work) -> Batch:
    """Draws some examples end to end, short ones as likely as long ones."""
    low, high = np.log([SHORTEST_FLAT, work.num_tokens + 1])
    lengths = np.exp(random.uniform(low, high, int(random.integers(1, MOST_EXAMPLES + 1)))).astype(int)
    alone = [draw_batch(random, vocab_size, length, work.labelled) for length in lengths]
    return Batch._make(np.concatenate(fields) for fields in zip(*alone, strict=True))


def main() -> None:
    """Prints the figures in its last line."""
    what, work = sys.argv[1], msgspec.json.decode(sys.argv[2], type=Work)
    if what == "profile":
        profile(work)
    else:
        print(msgspec.json.encode(measure(work) if what == "measure" else watch(work)).decode())


if __name__ == "__main__":
    main()
